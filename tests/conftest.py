"""Tiny models and tokenizers, built in memory."""

import atexit
import gc
import os
import shutil
import signal
import tempfile

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may ask the hub
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")  # nor fill the user's cache
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a suite in a shell's background is started without

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from helpers.models import tiny_bart, tiny_llama, tiny_t5, tiny_tokenizer
from helpers.rows import question_rows, write_jsonl

disable_progress_bar()
torch.set_num_threads(1)  # tiny models gain nothing by more


LONGEST = ("processes", "methods", "stopping", "trainer", "hub", "cli", "encoder_decoder", "rank")


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process is left alone with one of them in the end."""
    order = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="module", autouse=True)
def frozen_imports():
    """Trainer collects garbage after each training, which need not go through all that is imported each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def llama(tokenizer):
    return tiny_llama(len(tokenizer))


@pytest.fixture(scope="session")
def model_folders(tokenizer, tmp_path_factory):
    """Saved tiny models by architecture, each with the tokenizer."""
    folders = {}
    for name, build in (("llama", tiny_llama), ("t5", tiny_t5), ("bart", tiny_bart)):
        folders[name] = tmp_path_factory.mktemp("models") / f"tiny-{name}"
        build(len(tokenizer)).save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture
def questions():
    return Dataset.from_list(question_rows(24))


@pytest.fixture
def recipe_file(tmp_path, model_folders):
    """A recipe over 24, 6 and 9 rows that trains in seconds; returns a function, whose keywords change settings."""
    for split, count, shift in (("train", 24, 0), ("validation", 6, 3), ("test", 9, 5)):
        write_jsonl(tmp_path / f"{split}.jsonl", question_rows(count, shift))

    def write(**changes):
        settings = {
            "model_name_or_path": model_folders["llama"],
            "task": "question_answering",
            "train_file": tmp_path / "train.jsonl",
            "validation_file": tmp_path / "validation.jsonl",
            "test_file": tmp_path / "test.jsonl",
            "template": "question_answering/plain",
            "num_virtual_tokens": 6,
            "max_source_tokens": 96,
            "max_target_tokens": 12,
            "output_dir": tmp_path / "run",
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "use_cpu": "true",
            "disable_tqdm": "true",
        }
        settings |= changes
        path = tmp_path / "recipe.yaml"
        path.write_text(
            "".join(f"{key}: {value}\n" for key, value in settings.items() if value is not None), encoding="utf-8"
        )
        return path

    return write
