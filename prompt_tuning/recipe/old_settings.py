"""Settings of version 0.1.0 that are gone, and what replaces them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from prompt_tuning.errors import RecipeError
from prompt_tuning.support.yaml_files import TextPair

_BITSANDBYTES = 'quantization_config: {"quant_method": "bitsandbytes", '
_TORCHAO = (
    'quantization_config: {"quant_method": "torchao", '
    '"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}'
)

# What to write instead of each setting, as JSON: a recipe and a command line both read it.
GONE = {
    "load_in_8bit": f'{_BITSANDBYTES}"load_in_8bit": true}}',
    "load_in_4bit": f'{_BITSANDBYTES}"load_in_4bit": true}}',
    "bnb_4bit_quant_type": f'{_BITSANDBYTES}"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}}',
    "bnb_4bit_compute_dtype": f'{_BITSANDBYTES}"load_in_4bit": true, "bnb_4bit_compute_dtype": "bfloat16"}}',
    "bnb_4bit_use_double_quant": f'{_BITSANDBYTES}"load_in_4bit": true, "bnb_4bit_use_double_quant": true}}',
    "quant_type": _TORCHAO,
}


def translate(path: Path, pairs: list[TextPair]) -> list[TextPair]:
    """Return the settings of a saved run with `quantization_config` instead of the settings of 0.1.0.

    Args:
        path: the run's recipe, for messages.
        pairs: its settings.

    Raises:
        RecipeError: `quant_type` has settings that are not plain numbers, words or truth values.
    """
    kept = []
    old_pairs = []
    settings: dict[str, Any] = {}
    for pair in pairs:
        if pair.key not in GONE:
            kept.append(pair)
        elif not pair.key.startswith("load_in_") or str(pair.value).lower() != "false":
            # A switch that is off is left out, since an unquantized model needs no package.
            old_pairs.append(pair)
            settings[pair.key] = pair.value
    if not old_pairs:
        return kept
    if "quant_type" in settings:
        settings = {
            "quant_method": "torchao",
            "quant_type": {"default": _torchao_settings(path, settings["quant_type"])},
        }
    else:
        settings = {"quant_method": "bitsandbytes"} | settings
    return [*kept, replace(old_pairs[0], key="quantization_config", value=settings)]


def _torchao_settings(path: Path, call: str) -> dict[str, Any]:
    """Return torchao's mapping for a call such as `Int4WeightOnlyConfig(group_size=32)`."""
    match = re.fullmatch(r"(\w+)(?:\(((?:\w+=[\w.]+(?:, *)?)*)\))?", call)
    if not match:
        raise RecipeError(f"{path}: quant_type {call} cannot be translated. Set {_TORCHAO}.")
    data = dict(re.findall(r"(\w+)=([\w.]+)", match[2] or ""))
    return {"_type": match[1], "_data": data}
