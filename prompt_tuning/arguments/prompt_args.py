"""The settings of the prompt, of its training and of its evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Init = Literal["random", "vocab", "frequent", "text", "class_labels", "demonstrations", "template", "adapter"]
CHOICE_LOSSES = ("choices", "brier")
# The places of a prefix in an encoder-decoder model.
PREFIX_PLACES = ("prefix_encoder", "prefix_decoder", "prefix_cross")


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
