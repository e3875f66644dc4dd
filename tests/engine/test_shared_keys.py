"""Check that rows which read the keys of shared text without copies write what each row writes alone."""

import pytest
import torch
from helpers.architectures import PROMPT, SETTINGS, build, row_logits

from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.engine import shared_keys
from prompt_tuning.engine.shared_keys import SharedKeys
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config

PASSAGE = list(range(10, 22))
FURTHER = list(range(30, 47))  # Only some rows about the passage share this text, too.
ROWS = [
    [*PASSAGE, *FURTHER, 50, 51, 52],
    [60, 61, 62, 63, 64, 65],
    [*PASSAGE, *FURTHER, 53],
    [*PASSAGE, 55, 56, 57, 58],
    [*PASSAGE, *FURTHER],  # Its last token is read by `generate`, so that no key is its own.
]
NEW = 4
GREEDY = dict(max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None)


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Let every text be worth a call, and return a list of how many rows each call of attention had."""
    monkeypatch.setattr(shared_keys, "WORTH_A_CALL", 1)
    rows = []
    attend = SharedKeys.attend

    def counted(self, layer, query, *args):
        rows.append(len(query))
        return attend(self, layer, query, *args)

    monkeypatch.setattr(SharedKeys, "attend", counted)
    return rows


def prompted(base, **settings):
    torch.manual_seed(3)
    config = prompt_config(base, PROMPT, PromptArguments(**settings), ids=range(20, 20 + PROMPT))
    model = add_soft_prompt(base, config, None)
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight, std=0.3)
    return model.eval()


def written(model, rows, **settings):
    batch = pad_left(rows, 0)
    return model.generate(**batch, **GREEDY | settings)[:, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("architecture", SETTINGS)
def test_tokens_and_log_probabilities_are_those_of_single_rows(architecture, calls):
    base = build(architecture)
    model = prompted(base)
    batch = pad_left(ROWS, 0)
    output = model.generate(**batch, **GREEDY, output_logits=True, return_dict_in_generate=True)
    found = torch.stack(output.logits, 1).log_softmax(-1)
    prompt = model.prompt_encoder["default"].embedding.weight
    for row, new, scores in zip(ROWS, output.sequences[:, batch["input_ids"].shape[1] :], found, strict=True):
        logits = row_logits(base, prompt, [*row, *new[:-1].tolist()])[-NEW:]
        assert torch.equal(new, logits.argmax(-1))
        assert torch.allclose(scores, logits.log_softmax(-1), atol=1e-5)
    # ALiBi, capped scores and rows that pass their window keep copies.
    copied = architecture == "bloom" or "gemma2" in architecture or "window" in architecture
    assert bool(calls) is not copied


def test_a_window_that_holds_every_row_hides_none_of_the_shared_text(monkeypatch, calls):
    monkeypatch.setitem(SETTINGS, "mistral, window 64", dict(sliding_window=64))
    model = prompted(build("mistral, window 64", positions=128))
    assert written(model, ROWS) == [written(model, [row])[0] for row in ROWS]
    assert calls


def test_finished_rows_leave_and_free_their_place(calls):
    model = prompted(build("llama"))
    alone = [written(model, [row], max_new_tokens=16)[0] for row in ROWS]
    calls.clear()
    stops = {row[2] for row in alone[:3]}  # With these end tokens rows end at different steps.
    ended = [next((n + 1 for n, token in enumerate(row) if token in stops), 16) for row in alone]
    together = written(model, ROWS, max_new_tokens=16, eos_token_id=sorted(stops))
    assert len(set(ended)) > 1 and calls[-1] < calls[0] == len(ROWS)
    for new, row, end in zip(together, alone, ended, strict=True):
        assert new == (row[:end] + [0] * 16)[: len(new)]


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "repetition_penalty": 1.5}])
def test_beams_keep_copies(settings, calls):
    model = prompted(build("llama"))
    assert written(model, ROWS, **settings) == [written(model, [row], **settings)[0] for row in ROWS]
    assert not calls


def test_ids_of_rows_are_penalised_and_trained_prefixes_are_read_where_they_are(calls):
    model = prompted(build("qwen3"))
    penalised = dict(repetition_penalty=3.0, no_repeat_ngram_size=2)
    assert written(model, ROWS, **penalised) == [written(model, [row], **penalised)[0] for row in ROWS]
    base = build("gpt2")
    config = prompt_config(base, PROMPT, PromptArguments(method="prefix_tuning"), ids=range(20, 20 + PROMPT))
    model = add_soft_prompt(base, config, None).eval()
    calls.clear()
    assert written(model, ROWS) == [written(model, [row])[0] for row in ROWS]
    assert calls


def test_rows_without_a_key_of_their_own_read_all_from_others(calls):
    model = prompted(build("llama"))
    assert written(model, [ROWS[0]] * 3) == [written(model, [ROWS[0]])[0]] * 3
    assert calls


def test_half_precision_keeps_copies(calls):
    model = prompted(build("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        written(model, ROWS)
    assert not calls
