"""The configuration of an adapter with trained tokens, which PEFT does not know.

It is PEFT's configuration of the prompt or prefix before the source, with the tokens that are trained inside the text
and a switch for vectors in every layer. adapter_config.json names the type `TRAINED_TOKENS`, so that plain PEFT stops.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig, PrefixTuningConfig, PromptTuningConfig

SAVED_TYPE = "TRAINED_TOKENS"


@dataclass
class TrainedTokensConfig(PeftConfig):
    """The fields that such an adapter has beside those of PEFT.

    Args:
        text_token_ids: the ids `[S]` from whose embeddings the trained tokens inside the text start.
        layer_vectors: each trained token, before the source or inside the text, also has a vector for each layer.
        trained_text: what is trained of the template, for those who encode rows.
    """

    text_token_ids: list[int] = field(default_factory=list)
    layer_vectors: bool = False
    trained_text: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for adapter_config.json; unlike PEFT, with `SAVED_TYPE` as the type."""
        return super().to_dict() | {"peft_type": SAVED_TYPE, "prompt_type": str(self.peft_type.value)}

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """Return the configuration of the fields in an adapter_config.json, by its `prompt_type`."""
        fields = {name: value for name, value in kwargs.items() if name not in ("peft_type", "prompt_type")}
        return CONFIGS[kwargs["prompt_type"]](**fields)


@dataclass
class TrainedPromptConfig(TrainedTokensConfig, PromptTuningConfig):
    """Trained tokens behind a soft prompt, whose length may be 0."""


@dataclass
class TrainedPrefixConfig(TrainedTokensConfig, PrefixTuningConfig):
    """Trained tokens behind a prefix of keys and values."""


CONFIGS = {"PROMPT_TUNING": TrainedPromptConfig, "PREFIX_TUNING": TrainedPrefixConfig}


def saved_type(folder: str | Path, **kwargs: Any) -> str:
    """Return the type in a saved adapter's configuration; arguments as for `read_config`."""
    return PeftConfig._get_peft_type(str(folder), **kwargs)  # noqa: SLF001 - no public name


def read_config(folder: str | Path, **kwargs: Any) -> PeftConfig:
    """Return the configuration of a saved adapter; unlike PEFT, also of one with trained tokens.

    Args:
        folder: the adapter's folder.
        kwargs: the other arguments of `PeftConfig.from_pretrained`.

    Raises:
        ValueError: the folder holds no adapter_config.json. KeyError: the type is unknown.
    """
    if saved_type(folder, **kwargs) == SAVED_TYPE:
        return TrainedTokensConfig.from_pretrained(str(folder), **kwargs)
    return PeftConfig.from_pretrained(str(folder), **kwargs)
