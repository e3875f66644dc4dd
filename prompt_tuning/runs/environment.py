"""Describe what a bug report needs: versions, processor, memory and GPUs, without importing a large library."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prompt_tuning import __version__

PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "tokenizers", "safetensors",
    "huggingface_hub", "numpy", "jinja2", "bitsandbytes", "torchao", "bm25s", "matplotlib", "openai",
    "gradio", "pandas", "tensorboard", "trackio", "shtab",
)  # fmt: skip
# Variables that change what a command does; none of them holds a token.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "HF_DATASETS_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF", "WORLD_SIZE",
)  # fmt: skip
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader")


def describe_environment() -> dict[str, str]:
    """Return the facts of this machine and installation by name."""
    facts = {
        "prompt-tuning": __version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "memory": _memory(),
        "GPU": _gpus(),
    }
    facts |= {name: _version(name) for name in PACKAGES}
    return facts | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _memory() -> str:
    """Return the memory of the machine and what is available of it, in GiB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / 2**30:.1f} GiB"
    meminfo = Path("/proc/meminfo")  # Only Linux has it.
    if meminfo.is_file():
        sizes = dict(line.split(":") for line in meminfo.read_text().splitlines())
        text += f", {int(sizes['MemAvailable'].split()[0]) / 2**20:.1f} GiB available"
    return text


def _gpus() -> str:
    """Return name, memory and driver of each GPU, as NVIDIA's program prints them."""
    if not shutil.which(GPU_QUERY[0]):
        return "none found (there is no nvidia-smi)"
    shown = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=20, check=False)
    return "; ".join((shown.stdout or shown.stderr).strip().splitlines()) or "none found"
