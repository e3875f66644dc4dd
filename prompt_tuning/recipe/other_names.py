"""Names of settings on a command line, and what to write instead of names that other tools have."""

from __future__ import annotations

import re
from collections.abc import Iterable

from prompt_tuning.support.text import did_you_mean

FLAG_START = r"--?(?!inf$|nan$)[A-Za-z]"
NEAR = 0.75  # Names that are less alike, such as temperature and template, have different meanings.

# The settings of transformers' example scripts, TRL and PEFT that have another name here.
SETTINGS_OF = {
    "generation_num_beams": "num_beams beams",
    "learning_rate": "lr",
    "lr_scheduler_type": "lr_scheduler scheduler",
    "optim": "optimizer",
    "weight_decay": "wd",
    "warmup_steps": "warmup_ratio warmup",
    "num_train_epochs": "epochs num_epochs n_epochs",
    "max_steps": "steps num_steps max_train_steps num_train_steps",
    "per_device_train_batch_size": "batch_size train_batch_size bs per_gpu_train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size per_gpu_eval_batch_size",
    "gradient_accumulation_steps": "grad_accum accumulation_steps grad_accumulation_steps",
    "max_grad_norm": "grad_clip gradient_clipping clip_grad_norm",
    "max_source_tokens": "max_source_length max_input_length max_prompt_length",
    "max_target_tokens": "max_target_length max_output_length max_answer_length max_completion_length",
    "max_source_tokens and max_target_tokens": "max_length max_seq_length max_seq_len model_max_length block_size",
    "generation_max_length": "val_max_target_length val_max_answer_length",
    "max_target_tokens, or generation_max_length for evaluation alone": "max_new_tokens",
    "model_name_or_path": "model model_name model_id base_model model_path",
    "model_revision": "revision",
    "dtype": "torch_dtype precision",
    "dataset_name": "dataset dataset_id dataset_path",
    "dataset_config_name": "dataset_config config_name subset",
    "train_file": "train_data train_path training_file train_dataset",
    "validation_file": "val_file valid_file eval_file dev_file validation_data eval_dataset",
    "test_file": "test_data test_path predict_file test_dataset",
    "train_split": "dataset_train_split split_train",
    "test_split": "dataset_test_split",
    "text_column": "dataset_text_field text_column_name",
    "summary_column": "summary_column_name",
    "answer_column": "answer_column_name answers_column",
    "messages_column": "conversation_column conversations_column dataset_messages_field",
    "lang": "language",
    "num_virtual_tokens": "num_tokens prompt_length prompt_len num_prompt_tokens prefix_length pre_seq_len n_tokens",
    "method": "peft_type peft_method use_peft use_lora",
    "init": "prompt_tuning_init prompt_init",
    "init_text": "prompt_tuning_init_text",
    "encoder_hidden_size": "prefix_hidden_size token_dim",
    "lora_r": "lora_rank rank r",
    "lora_target_modules": "target_modules lora_modules",
    "lora_use_rslora": "use_rslora rslora",
    "lora_use_dora": "use_dora dora",
    "num_demonstrations": "num_shots shots n_shot num_fewshot num_demos",
    "metrics": "metric metric_name",
    "early_stopping_patience": "patience early_stopping",
    "eval_strategy": "evaluation_strategy",
    "train_sampling_strategy": "group_by_length shuffle",
    "preprocessing_num_workers": "dataset_num_proc num_proc",
    "dataloader_num_workers": "num_workers",
    "resume_from_checkpoint": "resume",
    "output_dir": "output save_dir out_dir",
    "use_cpu": "no_cuda cpu",
    "hub_model_id": "repo_id push_to_hub_model_id",
}
_OTHER_NAMES = {other: f"Set {names}." for names, others in SETTINGS_OF.items() for other in others.split()}

_GREEDY = "Leave it out: predictions are greedy, or by generation_num_beams."
_DECIDED_BY_MODEL = "Leave it out: the model's files decide it."
_TARGETS_ONLY = "Leave it out: only the targets carry loss."
_TOKEN = "Log in with `hf auth login`, or set HF_TOKEN."
# What to do instead of settings that have no counterpart.
_ADVICE = {
    "source_prefix": "Write the words into the template's source.",
    "source_suffix": "Write the words into the template's source.",
    "prompt": "Set template, a YAML file with a source and a target.",
    "overwrite_output_dir": "Name another output_dir, or remove the folder: no run overwrites another one.",
    "padding_side": "Leave it out: it changes no result here.",
    "pad_to_max_length": "Leave it out: rows are not padded to one length.",
    "pad_to_multiple_of": "Leave it out: rows are not padded to one length.",
    "ignore_pad_token_for_loss": _TARGETS_ONLY,
    "completion_only_loss": _TARGETS_ONLY,
    "assistant_only_loss": _TARGETS_ONLY,
    "packing": "Leave it out: rows are packed where the model allows it.",
    "forced_bos_token": "Set target_lang.",
    "temperature": _GREEDY,
    "top_p": _GREEDY,
    "top_k": _GREEDY,
    "do_sample": _GREEDY,
    "num_return_sequences": _GREEDY,
    "tokenizer_name": _DECIDED_BY_MODEL,
    "tokenizer_name_or_path": _DECIDED_BY_MODEL,
    "config_name_or_path": _DECIDED_BY_MODEL,
    "use_fast_tokenizer": _DECIDED_BY_MODEL,
    "attn_implementation": _DECIDED_BY_MODEL,
    "chat_template_path": _DECIDED_BY_MODEL,
    "overwrite_cache": "Leave it out: rows are encoded again if they, or the template, change.",
    "cache_dir": "Set the environment variable HF_HOME.",
    "token": _TOKEN,
    "use_auth_token": _TOKEN,
    "version_2_with_negative": "Set metrics: [squad_v2].",
    "doc_stride": "Set truncate: [context], or raise max_source_tokens.",
    "fp32": "Set dtype: float32.",
    "debug_mode": "Set max_steps and max_train_samples.",
}


def hint(name: str, valid: Iterable[str], fallback: str) -> str:
    """Return what to write instead of a name that does not exist, as a sentence.

    Args:
        name: the wrong name.
        valid: the names that exist.
        fallback: the sentence if no name is near.
    """
    name = name.replace("-", "_").lower()
    return _OTHER_NAMES.get(name) or _ADVICE.get(name) or did_you_mean(name, valid, cutoff=NEAR) or fallback


def split_flags(words: list[str]) -> list[list[str]]:
    """Return each flag of a command line with its values. Words before the first flag stand alone.

    >>> split_flags(["--learning_rate", "-1e-3", "--bf16"])
    [['--learning_rate', '-1e-3'], ['--bf16']]
    """
    groups: list[list[str]] = []
    for word in words:
        if re.match(FLAG_START, word) or not groups or not groups[-1][0].startswith("-"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return groups


def flag_name(word: str) -> str:
    """Return the setting that a word such as `--learning-rate=1` names."""
    return word.lstrip("-").split("=")[0].replace("-", "_")
