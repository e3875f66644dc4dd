"""Bound how far half precision moves a row in a batch: matrix products round by their shape.

The bounds are in standard deviations of a model's logits. They were measured for every architecture, with a soft
prompt and with a prefix, over 96 to 240 rows in batches of 3, 16 and 48. Kernels were those of AVX-512 with native
bfloat16, and those that `ONEDNN_MAX_CPU_ISA` and `ATEN_CPU_CAPABILITY` choose for AVX2 and for older processors.
"""

import random

import pytest
import torch
from helpers.architectures import PROMPT, SETTINGS, VOCABULARY, build, right_padded

from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config

LARGEST = 0.15  # 0.073 was measured for models without experts.
TYPICAL = 0.0125  # The root mean square was 0.0063.
# A token near the border between two experts takes the other one, and then has other logits altogether.
EXPERTS = ("mixtral", "qwen3_moe")
TOKENS_OF_OTHER_EXPERTS = 0.02  # 0.0042 was measured.


def soft(architecture):
    base = build(architecture)
    torch.manual_seed(1)
    return add_soft_prompt(base, prompt_config(base, PROMPT), torch.randn(PROMPT, 32) * 0.5).eval()


def random_rows(count):
    """Return rows of 3 to 27 ids that begin alike, and how many of the last ids of each are targets."""
    draw = random.Random(0)
    rows = [[7, 20, *(draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, 26)))] for _ in range(count)]
    return rows, [draw.randrange(1, len(row)) for row in rows]


def target_logits(model, size, rows, targets):
    """Return the logits `[targets, V]` of all rows, computed in batches of `size` rows."""
    logits = []
    for start in range(0, len(rows), size):
        batch = right_padded(rows[start : start + size], targets[start : start + size])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits.append(model(**batch).logits.float())
    return torch.cat(logits)


@pytest.mark.parametrize("architecture", SETTINGS)
def test_logits_in_a_batch_are_near_those_of_single_rows(architecture):
    model = soft(architecture)
    rows, targets = random_rows(48)
    alone = target_logits(model, 1, rows, targets)
    difference = (target_logits(model, 16, rows, targets) - alone) / alone.std()
    if architecture in EXPERTS:
        assert (difference.abs().amax(1) > LARGEST).float().mean() < TOKENS_OF_OTHER_EXPERTS
    else:
        assert difference.abs().max() < LARGEST
        assert difference.square().mean().sqrt() < TYPICAL


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral, window 6"])
def test_greedy_texts_differ_only_where_two_tokens_are_about_equally_likely(architecture):
    model = soft(architecture)
    rows, _ = random_rows(48)
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    written = {}
    with torch.autocast("cpu", torch.bfloat16):
        for size in (1, 16):
            written[size] = []
            for start in range(0, len(rows), size):
                batch = pad_left(rows[start : start + size], 0)
                new = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
                written[size] += new.tolist()
    different = [number for number in range(len(rows)) if written[1][number] != written[16][number]]
    for number in different:
        alone, together = written[1][number], written[16][number]
        step = next(step for step in range(8) if alone[step] != together[step])
        ids = [*rows[number], *alone[:step]]
        logits = target_logits(model, 1, [[*ids, 0]], [1])[0]
        gap = logits[alone[step]] - logits[together[step]]
        assert abs(gap) < 2 * LARGEST * logits.std()
    assert len(different) <= len(rows) // 4
