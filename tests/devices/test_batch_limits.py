"""Check how large the batches of an evaluation are on a GPU, by its free memory."""

import pytest
import torch
from datasets import Dataset
from helpers.architectures import build
from helpers.models import tiny_bart, tiny_t5
from helpers.rows import question_rows
from helpers.trainers import encoded, soft, trainer
from transformers import DynamicCache, MambaConfig, MambaForCausalLM

from prompt_tuning import PromptTuningArguments
from prompt_tuning.training import batch_limits
from prompt_tuning.training.batch_limits import ACTIVATIONS, CACHES, bytes_of_token, evaluation_limits

SMALL = dict(vocab_size=50, hidden_size=8, num_hidden_layers=1)


def limits(folder, base, **settings):
    return evaluation_limits(PromptTuningArguments(output_dir=str(folder), report_to="none", **settings), base)


@pytest.fixture
def free(monkeypatch):
    """Return a function that sets how many tokens of a model the free memory holds, and what is reserved of it."""
    # Within a pretended GPU the function is another one; the test is to leave PyTorch's own.
    monkeypatch.setattr(torch.cuda, "mem_get_info", torch.cuda.mem_get_info)

    def hold(base, tokens, reserved=0):
        free_bytes = int(bytes_of_token(base) * tokens / batch_limits.SHARE) + 1
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes - reserved, free_bytes))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved + 1000)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)

    return hold


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, (128, 8192)), (8191, (128, 8192)), (16384, (256, 16384)), (30000, (384, 24576)), (9**9, (1024, 65536))],
)
def test_the_defaults_grow_with_the_free_memory_within_bounds(tokens, expected, on_gpu, free, tmp_path):
    base = build("llama")
    with on_gpu():
        for reserved in (0, 500):
            free(base, tokens, reserved)
            assert limits(tmp_path, base) == expected


def test_other_devices_settings_and_models_keep_their_limits(on_gpu, free, tmp_path):
    base = build("llama")
    assert limits(tmp_path, base, use_cpu=True) == (128, 8192)
    with on_gpu():
        free(base, 9**9)
        assert limits(tmp_path, base, per_device_eval_batch_size=64) == (64, 8192)
        assert limits(tmp_path, base, per_device_eval_batch_tokens=900) == (128, 900)
        assert limits(tmp_path, MambaForCausalLM(MambaConfig(**SMALL))) == (128, 8192)


def test_all_processes_take_the_least_of_their_limits(on_gpu, free, tmp_path, monkeypatch):
    base = build("llama")
    monkeypatch.setattr(batch_limits, "gather_object", lambda times: [*times, 3])
    with on_gpu():
        free(base, 9**9)
        assert limits(tmp_path, base) == (3 * 128, 3 * 8192)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "phi3", "qwen3"])
def test_the_bytes_of_a_token_are_those_of_its_keys_values_and_logits(architecture):
    base = build(architecture).to(torch.bfloat16)
    cache = DynamicCache(config=base.config)
    output = base(input_ids=torch.tensor([[5, 6, 7]]), cache=cache, use_cache=True)
    states = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / 3
    logits = output.logits[0, 0]
    expected = CACHES * states + ACTIVATIONS * 2 * base.config.hidden_size + logits.nbytes + 2 * logits.float().nbytes
    assert bytes_of_token(base) == expected


@pytest.mark.parametrize("build_model", [tiny_t5, tiny_bart])
def test_encoder_decoders_have_bytes_of_a_token_too(build_model):
    assert 1000 < bytes_of_token(build_model(100)) < 10**6


def test_a_trainer_fills_its_batches_by_them(on_gpu, free, tokenizer, tmp_path):
    rows = encoded(tokenizer, question_rows(300))
    with on_gpu():
        model = soft("llama", tokenizer)
        sizes = []
        for tokens in (0, 9**9):
            run = trainer(model, tokenizer, tmp_path, use_cpu=False, report_to="none")
            free(run.model.get_base_model(), tokens)
            sizes.append([len(batch["input_ids"]) for batch in run.get_test_dataloader(rows)])
    assert max(sizes[0]) <= 128
    assert sizes[1] == [300]
    assert sum(sizes[0]) == 300


def test_a_batch_counts_its_prompt_and_what_opens_every_row_once(tokenizer, tmp_path):
    opening = list(range(5, 45))
    rows = [{"input_ids": [*opening, number, 46, 47, 48], "labels": [-100] * 43 + [48]} for number in range(50, 70)]
    model = soft("llama", tokenizer)
    prompt = model.active_peft_config.num_virtual_tokens
    most = prompt + len(opening) + 5 * (4 + 6)  # Six are new tokens.

    def largest(**settings):
        run = trainer(model, tokenizer, tmp_path, per_device_eval_batch_tokens=most, **settings)
        return max(len(batch["input_ids"]) for batch in run.get_test_dataloader(Dataset.from_list(rows)))

    assert largest() == 5
    assert largest(bf16=True) == most // (prompt + 44 + 6) < 5
