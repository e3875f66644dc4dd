"""The settings of a recipe that are ours, each a flag; the Trainer's stand in training_args.py."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Init = Literal["random", "vocab", "frequent", "text", "class_labels", "demonstrations", "template", "adapter"]


@dataclass
class ModelArguments:
    """Which frozen model."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or hub id of the base model."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a hub model."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Type of the frozen weights; the soft prompt is always trained in float32."}
    )
    quantization_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Load the frozen weights in fewer bits, by the mapping that transformers takes: {quant_method: "
            "bitsandbytes, load_in_4bit: true} (QLoRA, Dettmers et al. 2023), or one with quant_method: torchao. On "
            "the command line it is JSON. Not tested on GPUs."
        },
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run Python code that comes with a hub model."})

    def __post_init__(self) -> None:
        """Read `quantization_config` from JSON, as TrainingArguments reads its mappings.

        Raises:
            ValueError: it is not a mapping.
        """
        if isinstance(self.quantization_config, str):
            with contextlib.suppress(ValueError):
                self.quantization_config = json.loads(self.quantization_config)
        if not isinstance(self.quantization_config, dict | None):
            raise ValueError(
                f"quantization_config: expected a mapping, found {self.quantization_config!r}. "
                "Set {quant_method: bitsandbytes, load_in_4bit: true}, or leave it out."
            )


@dataclass
class DataArguments:
    """Which rows. The names are those of transformers' example scripts."""

    task: Literal["question_answering", "summarization", "translation"] | None = field(
        default=None, metadata={"help": "Decides the metrics and the usual columns."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Hub id of a data set."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of that data set."})
    train_split: str = field(default="train", metadata={"help": "Name of the training split on the hub."})
    validation_split: str = field(default="validation", metadata={"help": "Name of the validation split on the hub."})
    test_split: str = field(default="test", metadata={"help": "Name of the test split on the hub."})
    train_file: str | None = field(default=None, metadata={"help": "Local json, jsonl, csv or parquet file."})
    validation_file: str | None = field(default=None, metadata={"help": "The same for validation."})
    test_file: str | None = field(default=None, metadata={"help": "The same for test."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first N training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first N validation rows."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use the first N test rows."})
    source_lang: str | None = field(default=None, metadata={"help": "Language code translated from."})
    target_lang: str | None = field(default=None, metadata={"help": "Language code translated into."})
    lang: str | None = field(
        default=None, metadata={"help": "Language of the targets, if not target_lang; for metrics."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column to read as `document`."})
    summary_column: str | None = field(default=None, metadata={"help": "Column to read as `summary`."})
    context_column: str | None = field(default=None, metadata={"help": "Column to read as `context`."})
    question_column: str | None = field(default=None, metadata={"help": "Column to read as `question`."})
    answer_column: str | None = field(default=None, metadata={"help": "Column to read as `answers`."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that encode rows."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read and encode training rows as they are needed, pass after pass, in place of all before "
            "training; needs max_steps."
        },
    )
    buffer_size: int | None = field(
        default=None,
        metadata={"help": "streaming: rows shuffled among each other (1000); 1 keeps their order."},
    )

    @property
    def metric_language(self) -> str | None:
        return self.lang or self.target_lang


@dataclass
class PromptArguments:
    """Which prompt."""

    template: str | None = field(
        default=None,
        metadata={"help": "A shipped template (`prompt-tuning templates` lists them), or FILE or FILE:NAME of YAML."},
    )
    method: Literal[
        "prompt_tuning", "p_tuning", "prefix_tuning", "cpt", "multitask_prompt_tuning", "lora", "full", "none"
    ] = field(
        default="prompt_tuning",
        metadata={
            "help": "prompt_tuning: trained embeddings (Lester et al. 2021). p_tuning: the same, written by a "
            "network (Liu et al. 2021). prefix_tuning: trained keys and values (Li & Liang 2021; P-tuning v2, Liu et "
            "al. 2022). cpt: a bounded change of init_text's embeddings (Blau et al. 2024). multitask_prompt_tuning: "
            "one prompt for all of `tasks`, times a low-rank matrix of each (Wang et al. 2023). lora (Hu et al. 2022) "
            "and full fine-tuning: to compare with. none: evaluate the hard prompt, train nothing."
        },
    )
    tasks: list[str] | None = field(
        default=None,
        metadata={
            "help": "multitask_prompt_tuning: recipes of two or more tasks, each with task, template, data, budgets "
            "and metrics of its own; all else is set here. A task is called by its recipe's file name."
        },
    )
    num_ranks: int = field(default=1, metadata={"help": "multitask_prompt_tuning: rank of each task's matrix."})
    adapter: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub id of an adapter of the same method to go on training; it decides the length."
        },
    )
    num_virtual_tokens: int | None = field(
        default=None, metadata={"help": "Length of the prompt; with an init from text that of the text, else 20."}
    )
    init: Init = field(
        default="vocab",
        metadata={
            "help": "What the prompt starts from. random: noise at the embeddings' own scale. vocab: sampled tokens. "
            "frequent: the targets' most frequent tokens. text: init_text. class_labels: init_labels. demonstrations: "
            "training rows as the template writes them. template: what every row opens with, its system message, "
            "demonstrations and first words; demonstrations then leave the rows. adapter: init_adapter (SPoT, Vu et "
            "al. 2022). For prefix_tuning texts become the keys and values that the model computes of them."
        },
    )
    init_text: str | None = field(default=None, metadata={"help": "Text that the prompt starts from."})
    init_labels: list[str] | None = field(default=None, metadata={"help": "Class labels that the prompt starts from."})
    init_demonstrations: int = field(default=2, metadata={"help": "Training rows that the prompt starts from."})
    init_adapter: str | None = field(
        default=None,
        metadata={"help": "Folder or hub id of a soft prompt to start from; its length may differ."},
    )
    residual: bool = field(
        default=False,
        metadata={
            "help": "prompt_tuning: train embeddings plus a small network of them (Residual Prompt Tuning, "
            "Razdaibiedina et al. 2023); what is saved is an ordinary soft prompt."
        },
    )
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = field(
        default="MLP", metadata={"help": "p_tuning: what writes the prompt."}
    )
    encoder_hidden_size: int | None = field(
        default=None,
        metadata={
            "help": "Width of the network behind p_tuning, residual or prefix_projection; by default the model's."
        },
    )
    prefix_projection: bool = field(
        default=False, metadata={"help": "prefix_tuning: train a network that writes the prefix (Li & Liang 2021)."}
    )
    prefix_encoder: bool = field(
        default=True, metadata={"help": "Encoder-decoder: a prefix in encoder self-attention."}
    )
    prefix_decoder: bool = field(
        default=True, metadata={"help": "Encoder-decoder: a prefix in decoder self-attention."}
    )
    prefix_cross: bool = field(default=True, metadata={"help": "Encoder-decoder: a prefix in cross-attention."})
    lora_r: int = field(default=8, metadata={"help": "lora: rank."})
    lora_alpha: int = field(default=16, metadata={"help": "lora: scale, divided by the rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "lora: dropout."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "lora: names of the layers; by default every linear layer."}
    )
    loss: Literal["cross_entropy", "kl", "mse"] = field(
        default="cross_entropy",
        metadata={
            "help": "cross_entropy: of the targets. kl, mse: context distillation, of the targets' logits from those "
            "of the same model given teacher_template (Askell et al. 2021)."
        },
    )
    teacher_template: str | None = field(
        default=None, metadata={"help": "Longer template, as a few-shot prompt, that the soft prompt is to replace."}
    )
    max_teacher_tokens: int = field(default=1024, metadata={"help": "Budget of a source in teacher_template."})
    num_demonstrations: int = field(
        default=0,
        metadata={
            "help": "Training rows shown before each source, as the template writes them. What does not fit in "
            "max_source_tokens is left out, from the last, and counted."
        },
    )
    demonstration_selection: Literal["random", "balanced", "bm25"] = field(
        default="random",
        metadata={
            "help": "random, balanced (each target's text as often): drawn once with the seed, the same for all rows; "
            "they are saved in the run's template.yaml, leave the training split, and work for predict. bm25: the "
            "nearest to each row by its source (Robertson & Zaragoza 2009; needs the package bm25s); not for predict."
        },
    )
    max_source_tokens: int = field(default=512, metadata={"help": "Budget of a rendered source, in tokens."})
    max_target_tokens: int = field(
        default=64, metadata={"help": "Budget of a target; also the most tokens generated."}
    )
    truncate: list[str] | None = field(
        default=None, metadata={"help": "Columns that give way, in this order, when a source is over budget."}
    )
    drop_overlong: bool = field(
        default=False, metadata={"help": "Leave out (and count) training rows that do not fit, instead of stopping."}
    )
    score_choices: bool = field(
        default=True,
        metadata={
            "help": "A template with answer_choices is answered by the likeliest of them after the source; false: by "
            "what the model writes, as any other."
        },
    )
    choice_normalization: Literal["none", "tokens", "characters", "bytes", "unconditional"] = field(
        default="none",
        metadata={
            "help": "What a choice's log-likelihood is divided by. none: nothing, the sum that training raises "
            "(lm-evaluation-harness calls it acc). tokens, characters (acc_norm), bytes (acc_bytes): so many, for "
            "choices of unlike length. unconditional: less its log-likelihood without a source (acc_mutual_info; PMI, "
            "Holtzman et al. 2021)."
        },
    )
    license: str | None = field(
        default=None,
        metadata={"help": "Licence of what is trained, for its model card, as the hub calls it: apache-2.0."},
    )
    metrics: list[str] | None = field(
        default=None, metadata={"help": "Metrics in place of the task's: shipped names, hub ids or local paths."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better metric_for_best_model."}
    )
    early_stopping_threshold: float = field(default=0.0, metadata={"help": "How much better counts as better."})


PREFIX_PLACES = ("prefix_encoder", "prefix_decoder", "prefix_cross")  # of an encoder-decoder model
# What the recipes of `tasks` say, each for its own task; everything else is the multitask recipe's.
ENCODING_SETTINGS = (
    "template", "metrics", "truncate", "max_source_tokens", "max_target_tokens", "drop_overlong", "score_choices",
    "choice_normalization", "num_demonstrations", "demonstration_selection",
)  # fmt: skip
GENERATION_SETTINGS = ("generation_max_length", "generation_num_beams")
TASK_SETTINGS = frozenset(field.name for field in fields(DataArguments)).union(ENCODING_SETTINGS, GENERATION_SETTINGS)
LOCAL_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
