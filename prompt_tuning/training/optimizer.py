"""Give layer vectors a learning rate of their own."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.engine.trained_tokens import layer_vectors_of


def separate_layer_vectors(optimizer: Optimizer, model: nn.Module, args: TrainingArguments) -> None:
    """Move the layer vectors of a model into a group of a new optimiser with `layer_vectors_learning_rate`.

    Args:
        optimizer: of the model's trained parameters.
        model: the model.
        args: the training arguments. Those of transformers have one rate for all.
    """
    if not isinstance(args, PromptTuningArguments):
        return
    vectors = {id(parameter) for parameter in layer_vectors_of(model)}
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in vectors]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in vectors]
            optimizer.add_param_group(group | {"params": moved, "lr": args.layer_vectors_learning_rate})
