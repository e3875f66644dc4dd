"""The methods of a recipe, one row each.

No other module compares the name of a method or its type in PEFT: it asks the row. A new method needs a row here, its
configuration in models/prompts.py, and a row in tests/models/test_methods.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# The learning rates were chosen by the scores in recipes/README.md, except that of full fine-tuning.
PROMPT_LEARNING_RATE = 3e-2

# The programs besides transformers with PEFT that run what a method trains, such as vLLM or llama.cpp.
ANY = "any engine"
EMBEDDINGS = "any engine, after export"
LORA = "engines that load LoRA"
PEFT = "PEFT"
LAYERED = "vLLM with a plug-in, after export (Llama)"
NONE = "no other program"


@dataclass(frozen=True)
class Method:
    """What the rest of the package asks about a method.

    The defaults are those of an adapter of PEFT that has no row, such as IA3.

    Args:
        name: the value of `method` in a recipe. PEFT's name of the type is the same in upper case.
        trained_part: what is trained. "embeddings" stand before the text in the model's input; "keys and values"
            stand before it in every layer; "layers" are added to the model's own.
        settings: the settings that belong to this method and not to every method.
        refused_inits: values of `init` that the method cannot start from.
        starts_from_text: the prompt always starts from init_text, whatever `init` says.
        written_by_network: a network always writes the prompt, and only its output is saved.
        trains_several_tasks: `tasks` names the recipes that are trained together.
        continued_as: the method that a saved adapter is trained further with; by default the same one.
        learning_rate: the peak learning rate of a recipe that sets none.
        network_learning_rate: the same if a network writes the prompt at the user's wish.
        joint_learning_rate: the same if trained text or layer vectors move the model, too.
        fits_encoder_decoder: the method has a prompt for encoder-decoder models.
        runs_under_fsdp: the method trains on a model that FSDP splits.
        joins_ensembles: `ensemble` takes its adapters.
        results_key: the name of its scores and predictions in a run's files.
        label: the name of its scores in tables.
        instead_of_export: what to do with a run that `export` refuses; empty if it takes it.
        served_by: the programs other than this one that predict with what is saved.
        card_subject: what the model card calls the result.
        card_description: what the model card calls the method, with its paper.
    """

    name: str
    trained_part: Literal["embeddings", "keys and values", "layers", "weights", "nothing"] = "layers"
    settings: tuple[str, ...] = ()
    refused_inits: tuple[str, ...] = ()
    starts_from_text: bool = False
    written_by_network: bool = False
    trains_several_tasks: bool = False
    continued_as: str | None = None
    learning_rate: float = PROMPT_LEARNING_RATE
    network_learning_rate: float | None = None
    joint_learning_rate: float | None = None
    fits_encoder_decoder: bool = True
    runs_under_fsdp: bool = True
    joins_ensembles: bool = False
    results_key: str = "soft_prompt"
    label: str = "with soft prompt"
    instead_of_export: str = "Merge it into the model by merge_and_unload of PEFT, and serve the result."
    served_by: str = PEFT
    card_subject: str = "An adapter"
    card_description: str = ""

    @property
    def trains(self) -> bool:
        """A run trains something."""
        return self.trained_part != "nothing"

    @property
    def trains_embeddings(self) -> bool:
        """The prompt is a sequence of input embeddings."""
        return self.trained_part == "embeddings"

    @property
    def trains_keys_and_values(self) -> bool:
        """The prompt is a prefix: keys and values in every layer."""
        return self.trained_part == "keys and values"

    @property
    def has_prompt(self) -> bool:
        """Virtual tokens stand before the text."""
        return self.trains_embeddings or self.trains_keys_and_values

    @property
    def exportable(self) -> bool:
        """What is trained can be tokens of the model's vocabulary."""
        return not self.instead_of_export

    @property
    def trains_layers(self) -> bool:
        """Layers are added that can be switched off."""
        return self.trained_part == "layers"

    @property
    def trains_whole_model(self) -> bool:
        """The model's own weights change."""
        return self.trained_part == "weights"

    @property
    def takes_init(self) -> bool:
        """`init` decides where the prompt starts."""
        return self.takes("init")

    @property
    def continues_as(self) -> str:
        """The method that a saved adapter is trained further with."""
        return self.continued_as or self.name

    def takes(self, setting: str) -> bool:
        """Return whether a setting belongs to this method or to every method."""
        return setting in self.settings or not methods_of_setting(setting)

    def servers(self, settings: Mapping[str, object], *, encoder_decoder: bool = False) -> str:
        """Return the programs other than this one that predict with what a recipe trains.

        Args:
            settings: the settings of the recipe, by name.
            encoder_decoder: whether the base model is one, whose prompts cannot be exported.
        """
        if settings.get("lora_use_dora"):
            return PEFT  # vLLM refuses it.
        trains_text = settings.get("trained_text", "none") != "none"
        if trains_text and self.trains_keys_and_values:
            return NONE  # Trained text is embeddings, but PEFT does not know those inside a template.
        if settings.get("layer_vectors"):
            return LAYERED
        return PEFT if encoder_decoder and self.has_prompt else self.served_by

    def default_learning_rate(self, settings: Mapping[str, object]) -> float:
        """Return the learning rate of a recipe that sets none.

        Args:
            settings: the settings of the recipe, by name.
        """
        joint = settings.get("layer_vectors") or settings.get("trained_text", "none") != "none"
        if settings.get("prefix_projection") and self.network_learning_rate is not None:
            return self.network_learning_rate
        if joint and self.joint_learning_rate is not None:
            return self.joint_learning_rate
        return self.learning_rate


_ROWS = (
    Method(
        "prompt_tuning",
        trained_part="embeddings",
        settings=(
            "init", "residual", "init_demonstrations", "init_demonstration_tokens", "teacher_template",
            "encoder_hidden_size", "num_virtual_tokens", "layer_vectors", "trained_text",
        ),
        joint_learning_rate=1e-2,
        joins_ensembles=True,
        instead_of_export="",
        served_by=EMBEDDINGS,
        card_subject="A soft prompt",
        card_description="prompt tuning (Lester et al. 2021): trained embeddings before the text",
    ),
    Method(
        "p_tuning",
        trained_part="embeddings",
        settings=(
            "encoder_reparameterization_type", "teacher_template", "encoder_hidden_size", "num_virtual_tokens",
        ),
        written_by_network=True,
        continued_as="prompt_tuning",
        learning_rate=3e-3,
        instead_of_export="",
        served_by=EMBEDDINGS,
        card_subject="A soft prompt",
        card_description="P-tuning (Liu et al. 2021): embeddings before the text, written by a network",
    ),
    Method(
        "prefix_tuning",
        trained_part="keys and values",
        settings=(
            "init", "init_demonstrations", "init_demonstration_tokens", "teacher_template", "prefix_projection",
            "prefix_encoder", "prefix_decoder", "prefix_cross", "encoder_hidden_size", "num_virtual_tokens",
            "layer_vectors", "trained_text",
        ),
        refused_inits=("frequent", "class_labels", "adapter"),
        instead_of_export="Train method prompt_tuning, or predict with prompt_tuning.Predictor.",
        learning_rate=1e-2,
        network_learning_rate=3e-4,
        card_subject="A prefix",
        card_description="prefix tuning (Li & Liang 2021): trained keys and values in every layer",
    ),
    Method(
        "cartridge",
        trained_part="keys and values",
        settings=(
            "init", "init_demonstrations", "init_demonstration_tokens", "teacher_template", "num_virtual_tokens",
            "num_frozen_tokens",
        ),
        refused_inits=("frequent", "class_labels", "adapter"),
        fits_encoder_decoder=False,
        runs_under_fsdp=False,  # Frozen and trained tokens are two parameters, which was not tried under FSDP.
        instead_of_export="Train method prompt_tuning, or predict with prompt_tuning.Predictor.",
        learning_rate=1e-2,
        card_subject="A prefix",
        card_description="Cartridges (Eyuboglu et al. 2025): trained keys and values whose first tokens stay frozen",
    ),
    Method(
        "cpt",
        trained_part="embeddings",
        settings=("teacher_template",),
        starts_from_text=True,
        continued_as="prompt_tuning",
        learning_rate=3e-3,
        fits_encoder_decoder=False,
        runs_under_fsdp=False,  # The bound of the change is a copy of the embeddings, and FSDP drops it.
        instead_of_export="",
        served_by=EMBEDDINGS,
        card_subject="A soft prompt",
        card_description="CPT (Blau et al. 2024): a bounded change of the embeddings of a text",
    ),
    Method(
        "multitask_prompt_tuning",
        trained_part="embeddings",
        settings=("init", "num_virtual_tokens", "tasks", "num_ranks"),
        trains_several_tasks=True,
        runs_under_fsdp=False,
        instead_of_export="",
        served_by=EMBEDDINGS,
        card_subject="A soft prompt",
        card_description="multitask prompt tuning (Wang et al. 2023): one prompt times a matrix of each task",
    ),
    Method(
        "lora",
        trained_part="layers",
        settings=("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_use_rslora", "lora_use_dora"),
        learning_rate=1e-3,
        results_key="lora",
        label="with LoRA",
        served_by=LORA,
        card_subject="LoRA layers",
        card_description="LoRA (Hu et al. 2022): low-rank changes of the linear layers",
    ),
    Method(
        "full",
        trained_part="weights",
        learning_rate=2e-5,
        results_key="full",
        label="fine-tuned",
        served_by=ANY,
        card_subject="A whole model",
        card_description="full fine-tuning: every weight is trained",
    ),
    Method("none", trained_part="nothing", results_key="hard_prompt", label="hard prompt alone", served_by=ANY),
)  # fmt: skip
METHODS = {row.name: row for row in _ROWS}
HARD_PROMPT = METHODS["none"].results_key


def find_method(name: str) -> Method:
    """Return the row of a method.

    Args:
        name: its name, or the name of a type of PEFT in any case. A type without a row is an adapter of layers.
    """
    name = name.lower()
    return METHODS.get(name) or Method(name, card_description=f"PEFT's {name}")


def methods_of_setting(setting: str) -> list[str]:
    """Return the names of the methods that a setting belongs to; none if it belongs to all."""
    return [row.name for row in _ROWS if setting in row.settings]
