"""Provide tiny models and tokenizers, built in memory, and a recipe over tiny files to all tests."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # No test may ask the hub.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")  # No test may change the user's cache.
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A shell that starts the suite in the background removes this handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from helpers.models import tiny_bart, tiny_llama, tiny_t5, tiny_tokenizer
from helpers.rows import question_rows, write_jsonl

TESTS = Path(__file__).parent

disable_progress_bar()
torch.set_num_threads(1)  # More threads do not make tiny models faster.


LONGEST = (
    "training/test_distributed.py",
    "models/test_methods.py",
    "training/test_callbacks.py",
    "training/test_trainer.py",
    "cli/test_train.py",
    "models/test_encoder_decoder.py",
    "hub/test_upload.py",
    "studies/test_rank.py",
)


def pytest_collection_modifyitems(items):
    """Run the longest files first, so that two processes finish at about the same time."""

    def order(item):
        path = item.path.relative_to(TESTS).as_posix()
        return LONGEST.index(path) if path in LONGEST else len(LONGEST)

    items.sort(key=order)


@pytest.fixture(scope="module", autouse=True)
def frozen_imports():
    """Take the imported modules out of garbage collection, which Trainer starts after each training."""
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
    """Save a tiny model of each architecture with the tokenizer, and return the folders by name."""
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
    """Return a function that writes a recipe over 24, 6 and 9 rows. Its keywords change settings; None removes one."""
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


@pytest.fixture(scope="session")
def studied_files(tmp_path_factory):
    """Return a folder with recipes, rows, a template, runs, and a comparison, sweep, ranking and ensemble of them."""
    from helpers.fuzz import write_files  # imports hypothesis

    folder = tmp_path_factory.mktemp("studied") / "files"
    write_files(folder)
    return folder
