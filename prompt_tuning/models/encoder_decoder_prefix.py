"""The prefix of an encoder-decoder model: its configuration, its files and its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PrefixTuningConfig, TaskType
from peft.tuners.tuners_utils import BasePromptEncoder
from torch import nn

from prompt_tuning.engine.trained_config import TrainedTokensConfig, read_config, saved_type
from prompt_tuning.errors import AdapterError

# adapter_config.json holds this type instead of PREFIX_TUNING, so that plain PEFT stops at a method it does not know.
SAVED_TYPE = "ENCODER_DECODER_PREFIX"
FORMAT = "prompt_tuning/encoder_decoder_prefix/1"


@dataclass
class EncoderDecoderPrefixConfig(PrefixTuningConfig):
    """The configuration of a prefix for encoder-decoder models.

    PEFT's own fields matter too. `prefix_projection` trains an MLP with `encoder_hidden_size` hidden units that writes
    the prefix; only the prefix is saved. `init_weights` "zero" starts from zero keys and values. The default is normal
    noise with the standard deviation, layer by layer, of the keys and of the values that the model computes.

    Args:
        prefix_encoder: put keys and values before those of encoder self-attention.
        prefix_decoder: put keys and values before those of decoder self-attention.
        prefix_cross: put keys and values before those of cross-attention.
        places: the number of layers, of heads and the head size by place. The model fills it in.
        prefix_format: the format of the saved files.
    """

    prefix_encoder: bool = True
    prefix_decoder: bool = True
    prefix_cross: bool = True
    places: dict[str, list[int]] = field(default_factory=dict)
    prefix_format: str = FORMAT

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            AdapterError: no place is switched on, or the length or the format of the files is not valid.
        """
        super().__post_init__()
        self.task_type = TaskType.SEQ_2_SEQ_LM
        if not (self.prefix_encoder or self.prefix_decoder or self.prefix_cross):
            raise AdapterError("no place is switched on. Set prefix_encoder, prefix_decoder or prefix_cross to true.")
        if not self.num_virtual_tokens or self.num_virtual_tokens < 1:
            raise AdapterError(f"num_virtual_tokens is {self.num_virtual_tokens}. A prefix needs at least 1.")
        if self.prefix_format != FORMAT:
            raise AdapterError(
                f"prefix_format is {self.prefix_format}, expected {FORMAT}. Use the release that wrote it."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for adapter_config.json; unlike PEFT, with `SAVED_TYPE` as the type."""
        return super().to_dict() | {"peft_type": SAVED_TYPE}

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """Return the fields in an adapter_config.json; unlike PEFT, without the type, which PEFT does not know."""
        saved = super().from_json_file(path_json_file, **kwargs)
        return {name: value for name, value in saved.items() if name not in ("peft_type", "prompt_type")}

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """Return the configuration of the fields in an adapter_config.json, also of one with trained tokens."""
        if "text_token_ids" in kwargs:
            return TrainedEncoderDecoderPrefixConfig(**kwargs)
        return super().from_peft_type(**kwargs)


@dataclass
class TrainedEncoderDecoderPrefixConfig(EncoderDecoderPrefixConfig, TrainedTokensConfig):
    """Trained tokens of an encoder behind a prefix in every attention."""


def load_prompt_config(folder: str | Path, *, is_trainable: bool = False, **kwargs: Any) -> PeftConfig:
    """Return the configuration of a saved adapter, also of one at which `PeftConfig.from_pretrained` stops.

    Args:
        folder: the adapter's folder.
        is_trainable: the training is continued. A projected prefix is then a plain one, since its MLP is not saved.
        kwargs: the other arguments of `PeftConfig.from_pretrained`.

    Raises:
        ValueError: the folder holds no adapter_config.json, or the type is unknown.
        AdapterError: the configuration of a prefix is not valid.
    """
    if saved_type(folder, **kwargs) != SAVED_TYPE:
        config = read_config(folder, **kwargs)
        config.inference_mode = not is_trainable
        return config
    config = EncoderDecoderPrefixConfig.from_pretrained(str(folder), **kwargs)
    config.inference_mode = not is_trainable
    if is_trainable:
        config.prefix_projection = False
    return config


class EncoderDecoderPrefix(BasePromptEncoder):
    """Trained keys and values in float32, or an MLP that writes them.

    Their width W is the sum of 2 * layers * heads * head size over the places.

    Args:
        config: the configuration, with `places` filled in.
    """

    def __init__(self, config: EncoderDecoderPrefixConfig) -> None:
        """Create the tensors; `initialise` gives them their values."""
        super().__init__()
        length = config.num_virtual_tokens
        width = config.token_dim
        hidden = config.encoder_hidden_size
        self.widths: list[int] = []
        for layers, heads, size in config.places.values():
            self.widths += [heads * size] * (2 * layers)
        self.projected = config.prefix_projection and not config.inference_mode
        self.embedding = nn.Embedding(length, sum(self.widths))
        self.transform: nn.Module = nn.Identity()
        if self.projected:
            self.embedding = nn.Embedding(length, width)
            self.transform = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, sum(self.widths)))
        self.float().requires_grad_(not config.inference_mode)

    def forward(self, indices: torch.Tensor | None = None) -> torch.Tensor:
        """Return the prefix, `[1, P, W]`. PEFT gives `indices` when it saves, always of all virtual tokens."""
        return self.transform(self.embedding.weight)[None]

    def slots(self) -> list[torch.Tensor]:
        """Return the keys and then the values of each layer of each place, each `[P, heads * size]`."""
        return self()[0].split(self.widths, dim=1)

    @torch.no_grad()
    def initialise(self, deviations: torch.Tensor) -> None:
        """Start from normal noise, or scale an MLP so that it writes such noise.

        Args:
            deviations: the standard deviation of each slot, `[2 * layers of all places]`.
        """
        scale = deviations.repeat_interleave(torch.tensor(self.widths))
        if self.projected:
            scale = scale / self().std()
            self.transform[-1].weight.mul_(scale[:, None])
            self.transform[-1].bias.mul_(scale)
        else:
            self.embedding.weight.normal_().mul_(scale)

    def _load_adapter_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Replace the prefix, or the MLP, by a saved prefix."""
        saved = state_dict["prompt_embeddings"]
        expected = len(self.embedding.weight), sum(self.widths)
        if tuple(saved.shape) != expected:
            raise AdapterError(
                f"the saved prefix has shape {tuple(saved.shape)}, expected {expected}. Load it with "
                "EncoderDecoderPromptModel.from_pretrained, which reads its configuration."
            )
        if self.projected:
            self.embedding = nn.Embedding(*expected, device=self.embedding.weight.device)
            self.transform = nn.Identity()
            self.projected = False
        self.embedding.weight.data.copy_(saved)
