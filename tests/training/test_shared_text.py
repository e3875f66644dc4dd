"""Check how rows that share text come into the same batches, and what is trained on them."""

import random

import pytest
import torch
from datasets import Dataset
from helpers.models import tiny_llama
from helpers.rows import PEOPLE, PLACES
from helpers.trainers import encoded, prompt_of, soft, trainer
from peft import LoraConfig, get_peft_model

from prompt_tuning import PromptTuningArguments, PromptTuningTrainer
from prompt_tuning.errors import RecipeError
from prompt_tuning.training.losses import teacher_states
from prompt_tuning.training.sampling import EpochSampler
from prompt_tuning.training.shared_text import SharedText, text_families

OPENING = list(range(5, 11))
PASSAGES = [list(range(100 * n, 100 * n + 20 + n)) for n in range(1, 4)]


def id_rows(sources, **columns):
    ids = [[*OPENING, *source, 90] for source in sources]
    labels = [[-100] * len(row) + [3] for row in ids]
    return Dataset.from_dict({"input_ids": [[*row, 3] for row in ids], "labels": labels} | columns)


def passage_rows(num_passages=4, questions=3):
    """Return rows about passages, `questions` for each, in an order in which neighbours have other passages."""
    rows = []
    for question in range(questions):
        for number in range(num_passages):
            people = PEOPLE[number : number + questions]
            lives = [f"{person} lives in {PLACES[(number + n) % 10]}" for n, person in enumerate(people)]
            context = f"{'. '.join(lives)}. The garden is full of old trees and young birds."
            text = PLACES[(number + question) % 10]
            answers = {"text": [text], "answer_start": [context.index(text)]}
            rows.append({"context": context, "question": f"Where does {people[question]} live?", "answers": answers})
    return rows


def members(families):
    return {frozenset(row for row, family in enumerate(families) if family == number) for number in families}


def test_a_family_are_the_rows_that_share_much_text_beyond_what_all_share():
    first, second, third = PASSAGES
    sources = [[*first, 31], [*second, 32], [*first, 33, 34], [35, 36], [*third, 37], [*second, 38], [*second, 39]]
    assert members(text_families(id_rows(sources))) == {frozenset(family) for family in ([0, 2], [1, 5, 6], [3], [4])}
    # Sixteen tokens of a long row are little.
    long = [[*first[:17], *range(200 * n, 200 * n + 90)] for n in (2, 3)]
    assert len(members(text_families(id_rows([*long, [1, 2]])))) == 3


def test_rows_of_different_tasks_are_in_different_families_and_targets_count_for_nothing():
    sources = [[*PASSAGES[0], 31], [*PASSAGES[0], 32], [*PASSAGES[0], 33], [40]]
    assert members(text_families(id_rows(sources, task_ids=[0, 1, 0, 0]))) == {
        frozenset(family) for family in ([0, 2], [1], [3])
    }
    answers = Dataset.from_dict(
        {
            "input_ids": [[5, n, *range(50, 80)] for n in (1, 1, 2)],
            "labels": [[-100, -100, *range(50, 80)]] * 3,
        }
    )
    assert len(members(text_families(answers))) == 3


def drawn(families, most, step_rows, batch_rows, *, lengths=None, seed=3, epoch=0):
    lengths = lengths or [7 * number % 31 for number in range(len(families))]
    sampler = EpochSampler(step_rows, lengths, seed, shared_text=SharedText(families, most, batch_rows))
    sampler.set_epoch(epoch)
    return list(sampler)


def batches(order, size):
    return [order[start : start + size] for start in range(0, len(order), size)]


@pytest.mark.parametrize("most", [2, 3, 4, 9])
@pytest.mark.parametrize("step_rows", [1, 4, 6, 16])
def test_an_epoch_has_every_row_once_in_an_order_of_its_own_and_steps_for_any_number_of_processes(most, step_rows):
    rng = random.Random(most * step_rows)
    families = sorted(rng.randrange(12) for _ in range(59))
    order = drawn(families, most, step_rows, step_rows)
    assert sorted(order) == list(range(59)) and order == drawn(families, most, step_rows, step_rows)
    assert order != drawn(families, most, step_rows, step_rows, epoch=1)
    for batch_rows in {1, 2, step_rows}:  # So many rows of a step are run by a process at once.
        other = drawn(families, most, step_rows, batch_rows)
        assert [set(step) for step in batches(other, step_rows)] == [set(step) for step in batches(order, step_rows)]


def test_whole_groups_fill_batches_and_no_batch_has_more_rows_of_a_family_than_allowed():
    families = [number // 4 for number in range(64)]
    for epoch in range(3):
        for batch in batches(drawn(families, 4, 16, 8, epoch=epoch), 8):
            assert len({families[row] for row in batch}) == 2
    apart = drawn(families, 1, 8, 8)
    assert any(len({families[row] for row in batch}) > 4 for batch in batches(apart, 8))
    pairs = drawn(families, 2, 8, 8)
    assert all(len({families[row] for row in batch}) >= 2 for batch in batches(pairs, 8))


def test_the_longest_row_is_in_the_first_step_and_rows_of_a_step_are_of_like_length():
    families = [number // 3 for number in range(240)]
    lengths = [10 + 3 * family % 97 for family in families]
    steps = batches(drawn(families, 3, 6, 6, lengths=lengths), 6)
    assert max(lengths) in [lengths[row] for row in steps[0]]
    spread = [max(lengths[row] for row in step) - min(lengths[row] for row in step) for step in steps]
    assert sorted(spread)[len(spread) // 2] <= 6


def test_a_trainer_runs_fewer_tokens_and_resumes_to_the_same_prompt(tokenizer, tmp_path):
    rows = encoded(tokenizer, passage_rows())
    settings = dict(per_device_train_batch_size=3, max_steps=6, save_steps=5, save_total_limit=None)
    tokens = {}

    def train(name, resume=None, **others):
        model = soft("llama", tokenizer)
        counts = tokens.setdefault(name, [])
        model.base_model.model.layers[0].register_forward_pre_hook(
            lambda _, args: torch.is_grad_enabled() and counts.append(args[0].shape[1])
        )
        run = trainer(model, tokenizer, tmp_path / name, **(settings | others))
        run.train_dataset = rows
        run.train(resume_from_checkpoint=resume)
        return prompt_of(model)

    train("random")
    whole = train("grouped", group_shared=3)
    assert max(tokens["grouped"]) <= min(tokens["random"]) and sum(tokens["grouped"]) < sum(tokens["random"])
    checkpoint = str(tmp_path / "grouped" / "checkpoint-5")  # It is in the second epoch.
    assert torch.equal(whole, train("grouped", checkpoint, group_shared=3))
    accumulated = train("accumulated", group_shared=3, per_device_train_batch_size=1, gradient_accumulation_steps=3)
    assert torch.allclose(whole, accumulated, atol=1e-6)


def test_a_teacher_is_followed_as_in_single_rows(tokenizer, tmp_path):
    rows = encoded(tokenizer, passage_rows(2))
    model = soft("llama", tokenizer)
    run = PromptTuningTrainer(
        model=model, processing_class=tokenizer, train_dataset=rows,
        args=PromptTuningArguments(str(tmp_path), use_cpu=True, report_to="none"),
        teacher=teacher_states(tiny_llama(len(tokenizer)), rows, max_tokens=4000),
    )  # fmt: skip

    def loss_and_gradient(*numbers):
        batch = run.data_collator([{key: rows[n][key] for key in ("input_ids", "labels", "row")} for n in numbers])
        loss = run.compute_loss(model.train(), batch, num_items_in_batch=10)
        return loss, *torch.autograd.grad(loss, model.prompt_encoder["default"].embedding.weight)

    together = loss_and_gradient(*range(6))
    alone = [sum(parts) for parts in zip(*map(loss_and_gradient, range(6)), strict=True)]
    assert abs(together[0] - alone[0]) < 1e-5
    assert (together[1] - alone[1]).norm() / alone[1].norm() < 1e-4


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("lora", {}, "a PeftModelForCausalLM reads each row by itself"),
        ("t5", {}, "reads each row by itself"),
        ("eager", {}, "runs eager attention"),
        ("llama", {"train_sampling_strategy": "random"}, "train_sampling_strategy is random, not group_by_length"),
    ],
)
def test_a_model_or_an_order_without_shared_text_is_refused(name, settings, reason, tokenizer, tmp_path):
    if name == "lora":
        config = LoraConfig(target_modules="all-linear", r=2, task_type="CAUSAL_LM")
        model = get_peft_model(tiny_llama(len(tokenizer)), config)
    else:
        model = soft("llama" if name == "eager" else name, tokenizer)
    if name == "eager":
        model.base_model.set_attn_implementation("eager")
    with pytest.raises(RecipeError, match=f"group_shared: rows of a batch share no text here .*({reason})"):
        trainer(model, tokenizer, tmp_path, group_shared=2, **settings).train()


def test_a_model_that_is_only_evaluated_may_share_no_text(tokenizer, tmp_path):
    assert "eval_loss" in trainer(tiny_llama(len(tokenizer)), tokenizer, tmp_path, group_shared=2).evaluate()
