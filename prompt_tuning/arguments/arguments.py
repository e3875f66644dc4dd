"""The settings of a recipe, each also a flag, except those of Trainer, which are in training_args.py."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from prompt_tuning.support.json_values import parse_json

API_PREFIX = "openai:"
"""What the name of a model behind an API starts with."""

SETTINGS_OF_CALL = ("base_url", "api_key_env", "api_concurrency", "max_cost")
"""Settings of a model behind an API that belong to one call, so that no saved recipe has them."""

Init = Literal["random", "vocab", "frequent", "text", "class_labels", "demonstrations", "template", "adapter"]


@dataclass
class ModelArguments:
    """The frozen base model."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub id of the base model; or openai:NAME, a model that a server of OpenAI's API has "
            "under this name. The server is asked for answers to hard prompts, and nothing is trained."
        },
    )
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
    chat_template: str | None = field(
        default=None,
        metadata={"help": "Name of the chat template, for a tokenizer that has several; by default `default`."},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "openai:NAME: folder or hub id of the tokenizer that counts the tokens of rows, such as that of "
            "the small model beside it in a table. It is not sent."
        },
    )
    base_url: str | None = field(
        default=None,
        metadata={
            "help": "openai:NAME: address of the server with the path of its API, such as http://localhost:8000/v1. "
            "Only the command line can set it."
        },
    )
    api_key_env: str | None = field(
        default=None,
        metadata={
            "help": "openai:NAME: name of the environment variable that holds the server's key (OPENAI_API_KEY). Only "
            "the command line can set it."
        },
    )
    api_endpoint: Literal["completions", "chat"] | None = field(
        default=None,
        metadata={
            "help": "openai:NAME: completions sends a source as text to /completions, chat as a message to "
            "/chat/completions. By default chat for a template with chat: true, and completions for the others."
        },
    )
    api_concurrency: int | None = field(
        default=None, metadata={"help": "openai:NAME: the most requests that the server has at once (8)."}
    )
    token_prices: list[float] | None = field(
        default=None,
        metadata={"help": "openai:NAME: price of a million tokens that the model reads, and of those that it writes."},
    )
    max_cost: float | None = field(
        default=None,
        metadata={
            "help": "openai:NAME: send no request that could cost more than this in one command, by token_prices. "
            "Answers that were paid are kept for the next call."
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Run Python code of others: that of a model or a tokenizer, or a metric that is not shipped. A "
            "recipe may ask for it, and only the command line allows it."
        },
    )

    @property
    def api_name(self) -> str | None:
        """The name that a server has for the model; None for a model that is loaded here."""
        name = self.model_name_or_path or ""
        return name.removeprefix(API_PREFIX) if name.startswith(API_PREFIX) else None

    def __post_init__(self) -> None:
        """Read `quantization_config` from JSON, as TrainingArguments reads its mappings.

        Raises:
            ValueError: it is not a mapping.
        """
        if isinstance(self.quantization_config, str):
            with contextlib.suppress(ValueError):
                self.quantization_config = parse_json(self.quantization_config)
        if not isinstance(self.quantization_config, dict | None):
            raise ValueError(
                f"quantization_config: expected a mapping, found {self.quantization_config!r}. "
                'Set {"quant_method": "bitsandbytes", "load_in_4bit": true}, or leave it out.'
            )


@dataclass
class DataArguments:
    """The rows. The names are those of transformers' example scripts."""

    task: Literal["question_answering", "summarization", "translation"] | None = field(
        default=None, metadata={"help": "The task, which decides the metrics and the usual columns."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id of a data set, or a folder that save_to_disk wrote."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of that data set."})
    train_split: str = field(default="train", metadata={"help": "Name of the training split on the hub."})
    validation_split: str = field(default="validation", metadata={"help": "Name of the validation split on the hub."})
    test_split: str = field(default="test", metadata={"help": "Name of the test split on the hub."})
    train_file: str | None = field(
        default=None,
        metadata={"help": "Local json, jsonl, csv, tsv or parquet file, or a pattern such as rows/*.jsonl."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for the validation rows."})
    test_file: str | None = field(default=None, metadata={"help": "The same for the test rows."})
    validation_size: float | None = field(
        default=None,
        metadata={
            "help": "Cut the validation split from the training rows instead: a share below 1, or a number of rows. "
            "Rows with the same context, document or text to translate stay on one side."
        },
    )
    test_size: float | None = field(default=None, metadata={"help": "The same for the test split."})
    split_seed: int | None = field(
        default=None, metadata={"help": "validation_size, test_size: decides which rows they take (42)."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first N training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first N validation rows."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use the first N test rows."})
    source_lang: str | None = field(default=None, metadata={"help": "Code of the language to translate from."})
    target_lang: str | None = field(default=None, metadata={"help": "Code of the language to translate into."})
    lang: str | None = field(
        default=None, metadata={"help": "Code of the language of the targets, for metrics; by default target_lang."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column to read as `document`."})
    summary_column: str | None = field(default=None, metadata={"help": "Column to read as `summary`."})
    context_column: str | None = field(default=None, metadata={"help": "Column to read as `context`."})
    question_column: str | None = field(default=None, metadata={"help": "Column to read as `question`."})
    answer_column: str | None = field(default=None, metadata={"help": "Column to read as `answers`."})
    messages_column: str | None = field(
        default=None,
        metadata={
            "help": "Column to read as `messages`: conversations, each a list of {role, content}, for the templates "
            "conversation/messages and conversation/plain."
        },
    )
    source_column: str | None = field(
        default=None,
        metadata={"help": "translation: column of the texts in source_lang, if the code is not its name."},
    )
    target_column: str | None = field(default=None, metadata={"help": "The same for the texts in target_lang."})
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Number of processes that encode rows."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read and encode training rows when they are needed, instead of all before training; needs "
            "max_steps."
        },
    )
    buffer_size: int | None = field(
        default=None,
        metadata={"help": "streaming: number of rows that are shuffled together (1000); 1 keeps their order."},
    )

    def __post_init__(self) -> None:
        """Make whole numbers of sizes that are numbers of rows."""
        for name in ("validation_size", "test_size"):
            size = getattr(self, name)
            if size is not None and size >= 1 and size % 1 == 0:
                setattr(self, name, int(size))

    @property
    def metric_language(self) -> str | None:
        """The code of the language that metrics split texts by."""
        return self.lang or self.target_lang


@dataclass
class PromptArguments:
    """The prompt, how it is trained, and how rows are encoded and scored."""

    template: str | None = field(
        default=None,
        metadata={
            "help": "A shipped template (`prompt-tuning templates` lists them), or a YAML file as FILE or FILE:NAME."
        },
    )
    method: Literal[
        "auto",
        "prompt_tuning",
        "p_tuning",
        "prefix_tuning",
        "cartridge",
        "cpt",
        "multitask_prompt_tuning",
        "lora",
        "full",
        "none",
    ] = field(
        default="prompt_tuning",
        metadata={
            "help": "auto: the prompt that docs/how-to/choose-a-method.md advises, by servable. prompt_tuning: "
            "trained embeddings (Lester et al. 2021). p_tuning: embeddings that a network writes (Liu et al. 2021). "
            "prefix_tuning: trained keys and values (Li & Liang 2021; P-tuning v2, Liu et al. 2022). cartridge: the "
            "same with its first tokens frozen (Eyuboglu et al. 2025). cpt: a bounded change of the embeddings of "
            "init_text (Blau et al. 2024). multitask_prompt_tuning: one prompt for all of "
            "`tasks`, times a low-rank matrix for each task (Wang et al. 2023). lora (Hu et al. 2022) and full "
            "fine-tuning: for comparison. none: evaluate the hard prompt and train nothing."
        },
    )
    servable: bool | None = field(
        default=None,
        metadata={
            "help": "auto: whether other engines shall serve what is trained (default: true). false also trains a "
            "vector for each layer."
        },
    )
    tasks: list[str] | None = field(
        default=None,
        metadata={
            "help": "multitask_prompt_tuning: recipes of two or more tasks. Each sets its task, template, data, "
            "token budgets and metrics; this recipe sets the rest. The file name of a recipe is the name of its "
            "task."
        },
    )
    num_ranks: int = field(default=1, metadata={"help": "multitask_prompt_tuning: rank of the matrix of each task."})
    adapter: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub id of an adapter of the same method to train further; it decides the length."
        },
    )
    num_virtual_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Length of the prompt, in tokens; by default the length of the text that it starts from, or 20. 0 "
            "leaves the prompt out, with trained_text."
        },
    )
    num_frozen_tokens: int = field(
        default=1,
        metadata={
            "help": "cartridge: number of its first tokens that keep the keys and values that they start from. Much "
            "attention rests on the first token of a text, and a change of it can harm the training."
        },
    )
    trained_text: Literal["none", "ending", "all", "marked"] = field(
        default="none",
        metadata={
            "help": "prompt_tuning, prefix_tuning: train the embeddings of the template's own words too, each from "
            "that of its token. ending: the fixed text after the last column. all: all fixed text. marked: the text "
            "between the tags soft and endsoft. With num_virtual_tokens 0 nothing else is trained."
        },
    )
    init: Init = field(
        default="vocab",
        metadata={
            "help": "Where the prompt starts. random: noise at the scale of the embeddings. vocab: sampled tokens. "
            "frequent: the most frequent tokens of the targets. text: init_text. class_labels: init_labels. "
            "demonstrations: training rows as the template writes them. template: the text that all rows begin with, "
            "which is system message, demonstrations and first words; rows are then written without the "
            "demonstrations. adapter: init_adapter (SPoT, Vu et al. 2022). For prefix_tuning the model computes keys "
            "and values from the text."
        },
    )
    init_text: str | None = field(
        default=None, metadata={"help": "init text, method cpt: the text that the prompt starts from."}
    )
    init_labels: list[str] | None = field(
        default=None, metadata={"help": "init class_labels: the labels that the prompt starts from."}
    )
    init_demonstrations: int = field(
        default=2, metadata={"help": "init demonstrations: number of training rows that the prompt starts from."}
    )
    init_demonstration_tokens: int | None = field(
        default=None,
        metadata={
            "help": "init demonstrations: most tokens of such a row's source; longer rows are not drawn. By default "
            "max_source_tokens."
        },
    )
    init_adapter: str | None = field(
        default=None,
        metadata={"help": "init adapter: folder or hub id of the soft prompt to start from; its length may differ."},
    )
    residual: bool = field(
        default=False,
        metadata={
            "help": "prompt_tuning: train the embeddings through a small network with a skip connection (Residual "
            "Prompt Tuning, Razdaibiedina et al. 2023). An ordinary soft prompt is saved."
        },
    )
    encoder_reparameterization_type: Literal["MLP", "LSTM"] = field(
        default="MLP", metadata={"help": "p_tuning: the network that writes the prompt."}
    )
    encoder_hidden_size: int | None = field(
        default=None,
        metadata={
            "help": "p_tuning, residual, prefix_projection: width of the network; by default the width of the model."
        },
    )
    layer_vectors: bool = field(
        default=False,
        metadata={
            "help": "prompt_tuning, prefix_tuning: give each trained token also a vector for each layer, which is "
            "added to the layer's input at its place and starts from 0. Behind a prefix only the tokens of "
            "trained_text have them. In an encoder-decoder the decoder's first token has them, too."
        },
    )
    prefix_projection: bool = field(
        default=False, metadata={"help": "prefix_tuning: train a network that writes the prefix (Li & Liang 2021)."}
    )
    prefix_encoder: bool = field(
        default=True,
        metadata={"help": "prefix_tuning, encoder-decoder models: a prefix in the encoder's self-attention."},
    )
    prefix_decoder: bool = field(
        default=True,
        metadata={"help": "prefix_tuning, encoder-decoder models: a prefix in the decoder's self-attention."},
    )
    prefix_cross: bool = field(
        default=True, metadata={"help": "prefix_tuning, encoder-decoder models: a prefix in cross-attention."}
    )
    lora_r: int = field(default=8, metadata={"help": "lora: rank."})
    lora_alpha: int = field(default=16, metadata={"help": "lora: scale of the update, which is divided by the rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "lora: share of inputs that are dropped in training."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "lora: names of the layers that are trained; by default every linear layer."}
    )
    lora_use_rslora: bool = field(
        default=False,
        metadata={"help": "lora: divide lora_alpha by the root of the rank (rsLoRA, Kalajdzievski 2023)."},
    )
    lora_use_dora: bool = field(
        default=False,
        metadata={"help": "lora: also train the norm of each weight's columns (DoRA, Liu et al. 2024)."},
    )
    loss: Literal["cross_entropy", "choices", "brier", "kl", "mse"] = field(
        default="cross_entropy",
        metadata={
            "help": "cross_entropy: learn the targets. choices: learn which of the answer_choices is right, by the "
            "cross entropy over their likelihoods (binary for two). brier: the same by the squared error of their "
            "probabilities. kl, mse: context distillation (Askell et al. 2021), learn the logits that the same model "
            "computes for the targets after teacher_template."
        },
    )
    class_weights: Literal["none", "balanced"] = field(
        default="none",
        metadata={
            "help": "loss choices, brier: balanced multiplies the loss of a training row by rows / (targets x rows "
            "with its target), so that rare answers count as much as frequent ones."
        },
    )
    teacher_template: str | None = field(
        default=None,
        metadata={
            "help": "loss kl, mse: a longer template, such as a few-shot prompt, that the soft prompt shall replace."
        },
    )
    max_teacher_tokens: int = field(default=1024, metadata={"help": "Most tokens of a source in teacher_template."})
    num_demonstrations: int = field(
        default=0,
        metadata={
            "help": "Number of training rows that are shown before each source, as the template writes them. Those "
            "that do not fit in max_source_tokens are left out, the last first, and counted."
        },
    )
    demonstration_selection: Literal["random", "balanced", "bm25"] = field(
        default="random",
        metadata={
            "help": "random, balanced (each target equally often): drawn once with the seed, the same for all rows. "
            "They are saved in the run's template.yaml, removed from the training split, and used by predict. bm25: "
            "the rows with the most similar sources (Robertson & Zaragoza 2009; needs the package bm25s); not for "
            "predict."
        },
    )
    max_source_tokens: int = field(default=512, metadata={"help": "Most tokens of a rendered source."})
    max_target_tokens: int = field(
        default=64, metadata={"help": "Most tokens of a target, and most tokens that are generated."}
    )
    truncate: list[str] | None = field(
        default=None, metadata={"help": "Columns that are cut, in this order, if a source has too many tokens."}
    )
    drop_overlong: bool = field(
        default=False, metadata={"help": "Leave out and count training rows that do not fit, instead of stopping."}
    )
    drop_empty: bool = field(
        default=False,
        metadata={
            "help": "Leave out and count rows for which the template writes no source or no target, such as those "
            "that its `if` excludes, instead of stopping."
        },
    )
    score_choices: bool = field(
        default=True,
        metadata={
            "help": "Answer a template with answer_choices by the choice that is most likely after the source; "
            "false: by generating, as other templates are answered."
        },
    )
    choice_normalization: Literal["none", "tokens", "characters", "bytes", "unconditional"] = field(
        default="none",
        metadata={
            "help": "What the log-likelihood of a choice is divided by. none: nothing, so that it is the sum that "
            "training raises (acc of lm-evaluation-harness). tokens, characters (acc_norm), bytes (acc_bytes): the "
            "length of the choice. unconditional: nothing, but the log-likelihood without a source is subtracted "
            "(acc_mutual_info; PMI, Holtzman et al. 2021)."
        },
    )
    license: str | None = field(
        default=None,
        metadata={
            "help": "Licence of the result for its model card, by the name that the hub uses, such as apache-2.0."
        },
    )
    metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": "Metrics instead of those of the task: shipped names, or hub ids and paths, which are code and "
            "need --trust_remote_code."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better metric_for_best_model."}
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "Smallest improvement that counts as better."}
    )


CHOICE_LOSSES = ("choices", "brier")
# The places of a prefix in an encoder-decoder model.
PREFIX_PLACES = ("prefix_encoder", "prefix_decoder", "prefix_cross")
# The recipe of each task in `tasks` sets these; the multitask recipe sets everything else.
ENCODING_SETTINGS = (
    "template", "metrics", "truncate", "max_source_tokens", "max_target_tokens", "drop_overlong", "drop_empty",
    "score_choices",
    "choice_normalization", "num_demonstrations", "demonstration_selection",
)  # fmt: skip
GENERATION_SETTINGS = ("generation_max_length", "generation_num_beams")
TASK_SETTINGS = frozenset(field.name for field in fields(DataArguments)).union(ENCODING_SETTINGS, GENERATION_SETTINGS)
