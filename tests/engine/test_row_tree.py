"""Check that text which several rows of a batch share is computed once, and changes no loss and no gradient."""

import logging

import pytest
import torch
from helpers.architectures import (
    MULTITASK,
    PREFIXES,
    PROMPT,
    PROMPT_METHODS,
    SETTINGS,
    VOCABULARY,
    build,
    left_padded,
    reference_loss,
    right_padded,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.engine.attention import side_by_side
from prompt_tuning.engine.row_tree import RowTree, find_shared_texts, length_order
from prompt_tuning.engine.target_batch import Batch
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config

PASSAGE = list(range(10, 22))
FURTHER = list(range(30, 47))  # Only three of the rows about the passage share this text, too.
SHORT = [70, 71, 72]  # Two rows share it, which is not worth a segment of its own.
ROWS = [
    [*PASSAGE, *FURTHER, 50, 51, 52],
    [60, 61, 62, 63],
    [*PASSAGE, *FURTHER, 53, 54, 51],
    [*SHORT, 64, 65],
    [*PASSAGE, 55, 56, 57, 58],
    [*PASSAGE, *FURTHER, 50, 51, 52],
    [*SHORT, 66, 67, 68],
]
TARGETS = [2, 1, 2, 3, 2, 2, 2]
SAVED = 3 * len(PASSAGE) + 2 * len(FURTHER)
NEEDED = sum(map(len, ROWS)) - len(ROWS)  # A row's last token predicts nothing.
CASES = [(name, "row by row") for name in SETTINGS]
CASES += [(name, "side by side") for name in ("llama", "gemma2, window 6", "mistral, window 3")]
METHODS = PROMPT_METHODS | {"multitask_prompt_tuning": MULTITASK, "layer vectors": dict(layer_vectors=True)}


def prompted(base, method="prompt_tuning", length=PROMPT, text_ids=()):
    arguments = PromptArguments(**METHODS[method])
    config = prompt_config(base, length, arguments, ids=range(20, 20 + length), text_ids=list(text_ids))
    torch.manual_seed(3)
    model = add_soft_prompt(base, config, None, arguments.encoder_hidden_size if arguments.residual else None)
    for parameter in model.prompt_encoder.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def gradient(loss, model):
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.numel()]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])


def alone(model, batch, **settings):
    """Return the loss of a batch as the sum of its rows' losses, each computed by itself."""
    targets = (batch["labels"][:, 1:] != -100).sum()
    total = 0
    for number in range(len(batch["labels"])):
        row = {name: tensor[number : number + 1] for name, tensor in batch.items()}
        total = total + model(**row, num_items_in_batch=targets, **settings).loss
    return total


def check_against_single_rows(model, batch, bound=1e-4, **settings):
    expected = alone(model, batch, **settings)
    expected_gradient = gradient(expected, model)
    loss = model(**batch, **settings).loss
    assert abs(loss.item() - expected.item()) < bound / 10
    assert (gradient(loss, model) - expected_gradient).norm() / expected_gradient.norm() < bound


def tokens_of_layer(model):
    """Return a list to which the first layer adds how many tokens it runs in each forward."""
    counts = []
    layer = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    layer.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[:2].numel()))
    return counts


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_shared_texts_are_computed_once_with_the_loss_and_gradient_of_single_rows(
    architecture, attention, monkeypatch
):
    if attention == "side by side":  # This is the attention of an accelerator.
        monkeypatch.setattr("prompt_tuning.engine.attention.row_by_row", side_by_side)
    base = build(architecture)
    model = prompted(base)
    weight = model.prompt_encoder["default"].embedding.weight
    expected = reference_loss(base, weight, ROWS, TARGETS)
    expected_gradient = torch.autograd.grad(expected, weight)[0]
    counts = tokens_of_layer(model)
    loss = model(**left_padded(ROWS, TARGETS)).loss
    assert abs(loss.item() - expected.item()) < 1e-5
    assert (gradient(loss, model) - expected_gradient.flatten()).norm() / expected_gradient.norm() < 1e-4
    if architecture == "bloom":  # ALiBi needs padded rows, which share no text.
        assert model.execution_path.name == "cache"
    else:
        assert counts == [PROMPT + NEEDED - SAVED]


def test_eager_attention_shares_no_text_between_rows():
    base = build("llama")
    base.set_attn_implementation("eager")
    model = prompted(base)
    counts = tokens_of_layer(model)
    check_against_single_rows(model, right_padded(ROWS, TARGETS))
    assert model.execution_path.name == "cache" and counts[-1] == len(ROWS) * max(map(len, ROWS))


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_loss_and_gradient_of_single_rows(method, architecture, checkpointed):
    base = build(architecture)
    if checkpointed:
        base.activation_checkpointing_enable({"use_reentrant": False})
    model = prompted(base, method).train()
    batch = right_padded(ROWS, TARGETS)
    if method == "multitask_prompt_tuning":
        batch["task_ids"] = torch.tensor([0, 1, 1, 1, 0, 0, 0])
    counts = tokens_of_layer(model)
    check_against_single_rows(model, batch)
    num_virtual = 0 if method in PREFIXES else PROMPT
    if method == "multitask_prompt_tuning":
        # Row 2 has another task than the other rows about the passage, and shares nothing with them.
        assert NEEDED + 2 * num_virtual - 2 * len(PASSAGE) - len(FURTHER) in counts
    else:
        assert NEEDED + num_virtual - SAVED in counts


def test_under_bfloat16_a_shared_text_differs_from_single_rows_by_its_own_rounding():
    model = prompted(build("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        check_against_single_rows(model, right_padded(ROWS, TARGETS), bound=0.1)


def test_label_smoothing_and_a_batch_of_an_accumulated_step_count_as_in_single_rows():
    model = prompted(build("llama"))
    check_against_single_rows(model, right_padded(ROWS, TARGETS), label_smoothing=0.1)
    loss = model(**right_padded(ROWS, TARGETS), num_items_in_batch=100).loss
    assert loss.item() == pytest.approx(model(**right_padded(ROWS, TARGETS)).loss.item() * sum(TARGETS) / 100)


@pytest.mark.parametrize("architecture", ["llama", "mistral, window 6"])
@pytest.mark.parametrize("length", [0, PROMPT])
@pytest.mark.parametrize("marked", ["before the passage", "within the passage", "behind the passage"])
def test_trained_text_in_and_around_a_shared_text_keeps_its_gradient(marked, length, architecture):
    trained = [VOCABULARY, VOCABULARY + 1]
    place = {"before the passage": 1, "within the passage": 6, "behind the passage": len(PASSAGE) + 1}[marked]
    rows = []
    for row in ROWS:
        end = place if row[: len(PASSAGE)] == PASSAGE else 1
        rows.append([5, *row[: end - 1], *trained, *row[end - 1 :]])
    model = prompted(build(architecture), "layer vectors", length, text_ids=[8, 9])
    counts = tokens_of_layer(model)
    model(**right_padded(rows, TARGETS))
    check_against_single_rows(model, right_padded(rows, TARGETS))
    assert sum(counts[:3]) < NEEDED


def test_rows_without_targets_and_rows_that_are_alike_to_their_end_take_no_part_of_others():
    model = prompted(build("llama"))
    rows = [[*PASSAGE, *FURTHER, 50, 51]] * 3 + [[*PASSAGE, 52, 53]]
    batch = right_padded(rows, [8, 2, 2, 1])
    batch["labels"][2] = -100  # Such as a row that another process trains on, too.
    expected = alone(model, {name: tensor[[0, 1, 3]] for name, tensor in batch.items()})
    loss = model(**batch).loss
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    expected_gradient = gradient(expected, model)
    assert (gradient(loss, model) - expected_gradient).norm() / expected_gradient.norm() < 1e-4


def test_a_short_text_is_not_shared_and_the_choice_is_reported_once(caplog):
    caplog.set_level(logging.INFO, "prompt_tuning")
    model = prompted(build("llama"))
    model(**right_padded([[*SHORT, 64, 65], [66, 67], [*SHORT, 68, 69]], [1, 1, 1]))
    assert "computed once" not in caplog.text
    for _ in range(2):
        model(**right_padded(ROWS, TARGETS))
    assert caplog.text.count(f"computed once: {SAVED} of the first {NEEDED} tokens") == 1


def test_the_tree_has_a_text_for_each_length_that_enough_rows_share():
    rows = [
        [*PASSAGE, *FURTHER, 1, 2],
        [*PASSAGE, *FURTHER, 3, 2],
        [*PASSAGE, 4, 2],
        [*PASSAGE, *FURTHER, 5, 2],
        [6, 2],
    ]
    batch = right_padded(rows, [1] * len(rows))
    is_target = batch["labels"] != -100
    tree = RowTree(Batch.from_targets(batch["input_ids"], is_target), [0] * len(rows), 1)
    assert [text.tolist() for text in tree.texts] == [PASSAGE, FURTHER]
    layout = tree.layout((PROMPT,))
    assert layout.rows == (len(PASSAGE), len(FURTHER), 1, 1, 1, 1, 1)
    assert [ancestors[-1] for ancestors in layout.ancestors[1:]] == [0, 1, 2, 2, 1, 2, 0]
    assert layout.positions()[-5:].tolist() == [PROMPT + n for n in (29, 29, 12, 29, 0)]
    assert tree.num_saved == 3 * len(PASSAGE) + 2 * len(FURTHER)
    assert tree.predicts.tolist() == [-5, -4, -3, -2, -1]


def test_texts_are_shared_only_by_rows_behind_the_same_prompt():
    rows = [[*FURTHER, 1], [*PASSAGE, 2], [*FURTHER, 3], [*FURTHER, 4]]
    shared = find_shared_texts(rows, [0, 0, 1, 0], 2)
    assert [rows[number][start:end] for number, start, end in shared.spans] == [FURTHER]
    assert (shared.row_parents, shared.starts) == ([2, 0, 1, 2], [len(FURTHER), 0, 0, len(FURTHER)])


def test_rows_about_one_passage_stay_together_in_the_order_by_length():
    opening = list(range(70, 90))
    rows = [[1] * 9, [*FURTHER, 2], [1, 2] * 12, [*FURTHER, 3, 4], [1] * 4, [1, 2, 3], [*FURTHER, *FURTHER]]
    expected = [6, 3, 1, 2, 0, 4, 5]
    assert length_order(rows, share=True) == expected
    assert length_order([[*opening, *row] for row in rows], share=True) == expected
    assert length_order(rows, share=False) == [6, 2, 3, 1, 0, 4, 5]
    # A few words that many rows open with do not count.
    many = [[5, 6, *range(number)] for number in range(12)]
    assert length_order([*many, [7] * 8], share=True) == [*range(11, 5, -1), 12, *range(5, -1, -1)]
