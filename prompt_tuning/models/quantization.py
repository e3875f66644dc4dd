"""Frozen weights in 8 or 4 bits, by bitsandbytes or torchao, as transformers loads them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.utils import is_bitsandbytes_available, is_torchao_available
from transformers.utils.import_utils import BITSANDBYTES_MIN_VERSION, TORCHAO_MIN_VERSION
from transformers.utils.quantization_config import QuantizationConfigMixin

from prompt_tuning.arguments.arguments import ModelArguments
from prompt_tuning.errors import ModelError, RecipeError


def quantization_config(args: ModelArguments) -> QuantizationConfigMixin | None:
    """What `from_pretrained` takes as `quantization_config`; None for weights as they are.

    Raises:
        RecipeError: `quant_type` is not one of torchao's configurations.
        ModelError: the package is missing or too old.
    """
    if args.load_in_4bit or args.load_in_8bit:
        if not is_bitsandbytes_available():
            wanted = "load_in_4bit" if args.load_in_4bit else "load_in_8bit"
            raise _missing(wanted, f"bitsandbytes>={BITSANDBYTES_MIN_VERSION}")
        ours = {name: value for name, value in vars(args).items() if name.startswith(("load_in_", "bnb_4bit_"))}
        return BitsAndBytesConfig(**{name: value for name, value in ours.items() if value is not None})
    if args.quant_type:
        name, settings = torchao_call(args.quant_type)
        if not is_torchao_available():
            raise _missing(f"quant_type {name}", f"torchao>={TORCHAO_MIN_VERSION}")
        try:
            return TorchAoConfig(vars(import_module("torchao.quantization"))[name](**settings))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"torchao has no {name}" if isinstance(error, KeyError) else str(error)
            raise RecipeError(
                f"quant_type {args.quant_type}: {reason}; expected one of torchao.quantization's configurations"
            ) from error
    return None


def torchao_call(text: str) -> tuple[str, dict[str, Any]]:
    """`Int4WeightOnlyConfig(group_size=32)`, or without its brackets, -> its name and settings; nothing is run.

    Raises:
        RecipeError: anything else.
    """
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            return node.func.id, {each.arg: ast.literal_eval(each.value) for each in node.keywords}
        if isinstance(node, ast.Name):
            return node.id, {}
    except (SyntaxError, ValueError):
        pass
    raise RecipeError(
        f"quant_type {text}: expected one of torchao.quantization's configurations as Python writes it, as "
        "Int8WeightOnlyConfig or Int4WeightOnlyConfig(group_size=32)"
    )


def _missing(wanted: str, package: str) -> ModelError:
    return ModelError(f"{wanted} needs {package}, which is not here: pip install '{package}'")


@contextmanager
def allow_quantized_evaluation(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Within it Trainer takes a quantized model to which nothing was added; it refuses to evaluate one, too."""
    if isinstance(model, PeftModel) or not model.__dict__.get("is_quantized"):
        yield
        return
    model.is_quantized = False
    try:
        yield
    finally:
        model.is_quantized = True
