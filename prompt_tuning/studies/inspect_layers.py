"""Describe the vectors that trained tokens have in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prompt_tuning.engine.trained_config import TrainedTokensConfig
from prompt_tuning.support.tables import text_table


def rounded(tensor: torch.Tensor) -> Any:
    """Return numbers with four decimals."""
    return torch.round(tensor.double(), decimals=4).tolist()


def mean_and_range(values: list[float]) -> tuple[float, float, float]:
    """Return the mean, the lowest and the highest of some numbers."""
    return sum(values) / len(values), min(values), max(values)


def describe_trained_tokens(config: TrainedTokensConfig, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the number of tokens inside the text, and the sizes of vectors by layer and token if there are any.

    A size is the root mean square of a vector, in the unit of its layer. Vectors start from 0, so that it is also how
    far the vector moved.
    """
    report: dict[str, Any] = {"text_tokens": len(config.text_token_ids)}
    if config.layer_vectors:
        report["layer_vectors"] = []
        stacks = {"encoder ": "layer", "decoder ": "decoder"} if "decoder_vectors" in tensors else {"": "layer"}
        for stack, name in stacks.items():
            sizes = tensors[f"{name}_vectors"].square().mean(-1).sqrt()  # [L, P + S], or [M, 1] of a decoder
            for number, (unit, of_layer) in enumerate(zip(tensors[f"{name}_scales"], sizes, strict=True)):
                layer = f"{stack}{number}" if stack else number
                report["layer_vectors"].append({"layer": layer, "unit": rounded(unit), "sizes": rounded(of_layer)})
    return report


def layer_vectors_table(layers: list[dict[str, Any]]) -> str:
    """Return the sizes of vectors as text, a line for each layer."""
    rows = []
    for layer in layers:
        mean, low, high = mean_and_range(layer["sizes"])
        rows.append([str(layer["layer"]), f"{layer['unit']:.3f}", f"{mean:.3f}", f"{low:.3f} to {high:.3f}"])
    head = ("layer", "unit", "size of vectors", "lowest to highest")
    return text_table(head, rows, align=("right", "right", "right", "right"))
