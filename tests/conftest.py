"""Tiny models and tokenizers, built in memory."""

import atexit
import gc
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may ask the hub
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")  # nor fill the user's cache
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a suite in a shell's background is started without

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

disable_progress_bar()
torch.set_num_threads(1)  # tiny models gain nothing by more

ROOT = Path(__file__).parents[1]

PLACES = ["Turin", "Oslo", "Lima", "Kyoto", "Quito", "Porto", "Riga", "Perth", "Minsk", "Dakar"]
PEOPLE = ["Ada", "Bruno", "Chen", "Dora", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jun"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def question_rows(count, shift=0):
    """SQuAD rows of our own; answers are one word of the context."""
    rows = []
    for number in range(count):
        person, place = PEOPLE[number % 10], PLACES[(number + number // 10 + shift) % 10]
        context = f"{person} was born in the spring and lives in {place}."
        if number % 3 == 0:
            context = f"It is a long story. {context} The garden is full of old trees and young birds."
        answers = {"text": [place], "answer_start": [context.index(place)]}
        rows.append(
            {"id": str(number), "context": context, "question": f"Where does {person} live?", "answers": answers}
        )
    return rows


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_tokenizer():
    """A byte-level BPE of some 400 pieces, with end, padding and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [row["context"] + " " + row["question"] for row in question_rows(40)]
    tokenizer.train_from_iterator([*texts, "Answer the question. Context: Question: Answer: Summary:"] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", chat_template=CHAT_TEMPLATE
    )


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


def tiny_llama(vocab_size, seed=0, **settings):
    torch.manual_seed(seed)
    config = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,  # larger than usual, so that outputs depend on their inputs
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**(config | settings))).requires_grad_(False).eval()


def tiny_t5(vocab_size):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).requires_grad_(False).eval()


def tiny_bart(vocab_size):
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=vocab_size, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=256, dropout=0.0,
        pad_token_id=0, eos_token_id=1, bos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
        init_std=0.1,
    )  # fmt: skip
    return BartForConditionalGeneration(config).requires_grad_(False).eval()


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


def check_card(path):
    """A card whose metadata huggingface_hub reads, and writes again as it is; nothing in it is left to fill in."""
    text = path.read_text(encoding="utf-8")
    card = ModelCard(text)  # parses the model-index too; ModelCard.validate would ask the hub
    assert card.data.to_yaml(original_order=card._original_order) == text.split("\n---\n")[0].removeprefix("---\n")
    assert not [word for word in ("More Information Needed", "[Needs", "[needs", "Undefined", "None") if word in text]
    assert card.data.library_name in ("peft", "transformers") and card.data.tags
    return card
