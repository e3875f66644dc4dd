"""Frozen weights in fewer bits, as transformers loads them from `quantization_config`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from transformers import PreTrainedModel
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import is_bitsandbytes_available, is_torchao_available
from transformers.utils.import_utils import BITSANDBYTES_MIN_VERSION, TORCHAO_MIN_VERSION
from transformers.utils.quantization_config import QuantizationConfigMixin

from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.errors import ModelError, RecipeError, first_line
from prompt_tuning.support.text import did_you_mean


def quantization_config(args: ModelArguments) -> QuantizationConfigMixin | None:
    """Return what `from_pretrained` takes as `quantization_config`, or None for weights as they are.

    Args:
        args: its `quantization_config` is the mapping that `transformers.AutoQuantizationConfig.from_dict` reads.

    Raises:
        RecipeError: transformers has no such method, or the method has no such setting or value.
        ModelError: the package is missing or too old.
    """
    settings = args.quantization_config
    if not isinstance(settings, dict):
        return None
    _check_package(settings)
    try:
        config = AutoQuantizationConfig.from_dict(dict(settings))
    except ImportError as error:
        raise ModelError(f"quantization_config: {first_line(error)}") from error
    except Exception as error:  # torchao raises an error of its own for a configuration of another version
        raise RecipeError(
            f"quantization_config: {first_line(error)}. Write the mapping that transformers' AutoQuantizationConfig "
            "reads."
        ) from error
    names = inspect.signature(type(config).__init__).parameters
    for name in settings:
        if name not in names and name != "quant_method":
            hint = did_you_mean(name, names) or "Leave it out."
            raise RecipeError(f"quantization_config: {type(config).__name__} has no setting {name}. {hint}")
    return config


def _check_package(settings: dict[str, object]) -> None:
    """Raise ModelError if the package of the method is missing or too old."""
    loads_bits = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    method = "bitsandbytes" if loads_bits else settings.get("quant_method")
    package = None
    if method == "bitsandbytes" and not is_bitsandbytes_available():
        package = f"bitsandbytes>={BITSANDBYTES_MIN_VERSION}"
    elif method == "torchao" and not is_torchao_available():
        package = f"torchao>={TORCHAO_MIN_VERSION}"
    if package:
        raise ModelError(
            f"quantization_config: {method} needs {package}, which is not installed. Run `pip install '{package}'`."
        )


@contextmanager
def allow_quantized_evaluation(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Let Trainer evaluate a quantized model without an adapter, which it refuses to train."""
    if isinstance(model, PeftModel) or not model.__dict__.get("is_quantized"):
        yield
        return
    model.is_quantized = False
    try:
        yield
    finally:
        model.is_quantized = True
