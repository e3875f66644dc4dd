"""Check the settings of a recipe that only the classes of Trainer, or the machine, can judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate.utils import DynamoBackend

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.training_args import sharding
from prompt_tuning.recipe.rules import Rules, broken_rules

if TYPE_CHECKING:
    from prompt_tuning.recipe.recipe import Recipe

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def validation_errors(recipe: Recipe) -> list[str]:
    """Return all that is wrong with a recipe whose text is right, one message each. Reads no row and no model."""
    training = recipe.training
    checkpointing = training.activation_checkpointing_kwargs or {}
    rules: Rules = [
        (
            METHODS[recipe.prompt.method].trains_keys_and_values and checkpointing.get("use_reentrant"),
            "activation_checkpointing_kwargs: use_reentrant takes no gradient through the cache that holds a prefix. "
            "Leave it out.",
        ),
        (
            training.fsdp and training.world_size == 1,
            "fsdp splits a model over several processes. Start them by `accelerate launch`, for example with "
            "recipes/accelerate/fsdp2.yaml.",
        ),
    ]
    errors = broken_rules(rules) + _precision_errors(recipe) + _compile_errors(recipe)
    return errors + training.validation_errors()


def _precision_errors(recipe: Recipe) -> list[str]:
    """Return what is wrong with the number formats of the computation and of the weights on this machine."""
    settings = recipe.model.quantization_config
    quantization = settings if isinstance(settings, dict) else {}
    computing = recipe.computing_type
    split_by = sharding(recipe.training)
    stored = str(quantization.get("bnb_4bit_quant_storage", "uint8")).removeprefix("torch.")
    return broken_rules(
        [
            (
                recipe.training.fp16 and recipe.training.device.type == "cpu",
                "fp16 has no effect on a CPU: accelerate trains in float32. Set bf16: true, or leave it out.",
            ),
            (
                quantization and split_by and (split_by == "ZeRO-3" or not quantization.get("load_in_4bit")),
                "quantization_config: FSDP splits quantized weights only of load_in_4bit, and ZeRO-3 none. Launch it "
                "with recipes/accelerate/ddp.yaml.",
            ),
            (
                quantization.get("load_in_4bit") and split_by == "FSDP" and stored != computing,
                f"quantization_config: FSDP splits 4-bit weights only if they are stored as {computing}, in which the "
                f"training computes. Set bnb_4bit_quant_storage: {computing}.",
            ),
        ]
    )


def _compile_errors(recipe: Recipe) -> list[str]:
    """Return the settings of torch.compile that neither accelerate nor PyTorch knows."""
    backends = [name.lower() for name in DynamoBackend.__members__ if name != "NO"]
    taken = {"torch_compile_backend": backends, "torch_compile_mode": COMPILE_MODES}
    rules: Rules = []
    for name, values in taken.items():
        value = getattr(recipe.training, name)
        unknown = value is not None and value.lower() not in values
        rules.append((unknown, f"{name} is {value!r}. Take one of {', '.join(values)}."))
    return broken_rules(rules)
