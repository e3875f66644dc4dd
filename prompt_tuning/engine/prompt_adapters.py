"""Load, delete, unload and merge prompts, and refuse a base model that has an adapter already."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM, PeftModelForSeq2SeqLM, TaskType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch.utils.hooks import RemovableHandle

from prompt_tuning.engine.adapter_weights import check_weights
from prompt_tuning.engine.dispatch import check_one_device
from prompt_tuning.engine.prompt_network import is_network, load_network
from prompt_tuning.engine.trained_config import TrainedTokensConfig, read_config
from prompt_tuning.engine.trained_tokens import (
    TrainedTable,
    TrainedTokens,
    active_table,
    hook_layers,
    read_trained_ids,
    trained_tokens_of,
)
from prompt_tuning.errors import AdapterError

TASK_TYPES = {PeftModelForCausalLM: TaskType.CAUSAL_LM, PeftModelForSeq2SeqLM: TaskType.SEQ_2_SEQ_LM}
"""The task type of the adapters that each class of PEFT takes."""


def check_task_type(cls: type[PeftModel], config: PeftConfig, folder: str | Path) -> None:
    """Raise an AdapterError if an adapter is for another kind of model than this class.

    Args:
        cls: a subclass of one of TASK_TYPES.
        config: the configuration of the adapter.
        folder: the adapter's folder, for the message.
    """
    (expected,) = [task for base, task in TASK_TYPES.items() if issubclass(cls, base)]
    if config.task_type != expected:
        raise AdapterError(
            f"{folder}: an adapter of task type {config.task_type}, and {cls.__name__} takes {expected.value}. Load "
            "it by prompt_tuning.load_adapter or PeftModel.from_pretrained."
        )


class PromptAdapters(PeftModel):
    """What models with prompts do differently from PEFT with their adapters; a base class of both of them.

    PEFT's other methods hold as they are: `add_adapter` refuses an adapter of another kind, `set_adapter` chooses one
    of several, and `disable_adapter` gives the base model.
    """

    _hooks: Sequence[RemovableHandle] = ()  # The hooks by which trained tokens reach the base model.

    def __init__(self, model: torch.nn.Module, peft_config: Any, adapter_name: str = "default", **kwargs: Any) -> None:
        """Add the adapter; the arguments are those of PEFT.

        Raises:
            AdapterError: the base model has an adapter already. ModelError: it is spread over several devices.
        """
        check_one_device(model)
        if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise AdapterError(
                "the base model has an adapter already, which the saved prompt could not name. Merge it "
                "(merge_and_unload), save the result with save_pretrained, and load that as the base model."
            )
        super().__init__(model, peft_config, adapter_name, **kwargs)

    @classmethod
    def saved_config(cls, model_id: str | Path, *, is_trainable: bool, **kwargs: Any) -> PeftConfig:
        """Return the configuration of a saved adapter.

        Args:
            model_id: the adapter's folder.
            is_trainable: the training is continued.
            kwargs: arguments of PEFT's downloads, such as `subfolder`.
        """
        config = read_config(model_id, **kwargs)
        config.inference_mode = not is_trainable
        return config

    @classmethod
    def from_pretrained(
        cls,
        model: torch.nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,  # noqa: FBT001, FBT002, the signature is PEFT's
        config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return the base model with a saved adapter; unlike PEFT, as this class, and to continue its training too.

        Args:
            model: the base model. It is changed.
            model_id: the adapter's folder.
            adapter_name: the name of the adapter in the model.
            is_trainable: the training is continued.
            config: the configuration; by default the saved one.
            kwargs: the other arguments of `load_adapter`.

        Raises:
            AdapterError: the adapter is not one of this class or does not fit the model, or training is to continue
                and only what a network wrote was saved.
        """
        if config is None:
            config = cls.saved_config(model_id, is_trainable=is_trainable, **cls._split_kwargs(kwargs)[0])
        check_task_type(cls, config, model_id)
        config.inference_mode = not is_trainable
        peft_model = cls(model, config, adapter_name)
        peft_model.load_adapter(model_id, adapter_name, is_trainable=is_trainable, **kwargs)
        return peft_model

    def _add_trained_tokens(self, adapter_name: str) -> None:
        """Register the trained tokens of an adapter beside its prompt, so that they are trained and moved with it."""
        config = self.peft_config[adapter_name]
        if not isinstance(config, TrainedTokensConfig):
            return
        encoder = self.prompt_encoder[adapter_name]
        encoder.trained_tokens = TrainedTokens(config, self.base_model)
        hooks = [self.base_model.register_forward_pre_hook(read_trained_ids, with_kwargs=True)]
        hooks += hook_layers(self.base_model) if config.layer_vectors else []
        self._hooks = [*self._hooks, *hooks]
        if not config.num_virtual_tokens:
            encoder.embedding.requires_grad_(requires_grad=False)  # It is empty, and gets no gradient.

    def trained_tokens(self, adapter_names: Sequence[str] | None = None) -> AbstractContextManager[None]:
        """Return a context in which forwards of the base model read trained ids, and hand places to the layers.

        Args:
            adapter_names: the adapters of the rows; by default the active one.
        """
        names = dict.fromkeys(adapter_names or [self.active_adapter])
        encoders = self.prompt_encoder if self.active_peft_config.is_prompt_learning else {}
        tokens = {name: trained_tokens_of(encoders[name]) for name in names if name in encoders}
        if self.disabled or all(part is None for part in tokens.values()):
            return nullcontext()
        return TrainedTable(self.get_base_model(), tokens).active()

    @property
    def _table(self) -> TrainedTable | None:
        """The table of trained tokens within `trained_tokens`."""
        return active_table(self.get_base_model())

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings `[..., H]` of ids `[...]`, within `trained_tokens` also of trained ones."""
        return self.word_embeddings(ids) if self._table is None else self._table.embed(ids)

    @property
    def disabled(self) -> bool:
        """True within `disable_adapter`, where the model is its base model."""
        return self._adapters_disabled

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,  # noqa: FBT001, FBT002, the signature is PEFT's
        **kwargs: Any,
    ) -> Any:
        """Load a saved adapter; unlike PEFT, check it, and load the network that writes the prompt from a checkpoint.

        Only a checkpoint holds the network. Elsewhere only its output is saved, which then replaces the network.

        Raises:
            AdapterError: the weights do not fit the configuration, or training is to resume and only what the network
                wrote was saved.
        """
        hub_kwargs = self._split_kwargs(kwargs)[0]
        config = self.peft_config.get(adapter_name)
        if config is None:
            config = self.saved_config(model_id, is_trainable=is_trainable, **hub_kwargs)
        tensors = check_weights(config, model_id, **hub_kwargs)
        if not config.is_prompt_learning:
            return super().load_adapter(model_id, adapter_name, is_trainable, **kwargs)
        if adapter_name not in self.peft_config:
            self.add_adapter(adapter_name, config)
        loaded = load_network(self, adapter_name, model_id, is_trainable=is_trainable)
        if loaded is None:
            loaded = super().load_adapter(str(model_id), adapter_name, is_trainable, **kwargs)
            if is_network(self.prompt_encoder[adapter_name]):
                config.inference_mode = True  # PEFT then takes the loaded embeddings as they are.
        trained = trained_tokens_of(self.prompt_encoder[adapter_name])
        if trained is not None:
            for name, tensor in trained.tensors().items():
                if tensor.shape != tensors[name].shape:
                    raise AdapterError(
                        f"{model_id}: {name} has the shape {list(tensors[name].shape)}, and the model takes "
                        f"{list(tensor.shape)}. Load it on the model that it was trained on."
                    )
                tensor.copy_(tensors[name])
        return loaded

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save the adapters; unlike PEFT, with their trained tokens; the arguments are those of PEFT."""
        super().save_pretrained(str(save_directory), *args, **kwargs)
        encoders = self.prompt_encoder if self.active_peft_config.is_prompt_learning else {}
        for adapter_name, encoder in encoders.items():
            trained = trained_tokens_of(encoder)
            folder = Path(save_directory) if adapter_name == "default" else Path(save_directory, adapter_name)
            file = folder / SAFETENSORS_WEIGHTS_NAME
            if trained is not None and kwargs.get("is_main_process", True) and file.is_file():
                save_file(load_file(file) | trained.tensors(), file, metadata={"format": "pt"})

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; unlike PEFT, refuse to delete the only prompt, without which PEFT's forward fails.

        Raises:
            AdapterError: it is the only prompt.
        """
        if self.active_peft_config.is_prompt_learning and list(self.peft_config) == [adapter_name]:
            raise AdapterError(f"{adapter_name} is the only adapter. Call unload(), which returns the base model.")
        super().delete_adapter(adapter_name)

    def unload(self) -> torch.nn.Module:
        """Return the base model without its adapters and hooks; unlike PEFT, also without a prompt."""
        for hook in self._hooks:
            hook.remove()
        return self.base_model if self.active_peft_config.is_prompt_learning else self.base_model.unload()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """Return the base model with its adapters merged into the weights; the arguments are those of PEFT.

        Raises:
            AdapterError: the adapter is a prompt, which is no change of weights.
        """
        if self.active_peft_config.is_prompt_learning:
            kind = self.active_peft_config.peft_type.value
            raise AdapterError(f"a {kind} adapter has no weights to merge. Call unload() for the base model alone.")
        return self.base_model.merge_and_unload(*args, **kwargs)
