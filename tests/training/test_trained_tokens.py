"""Train trained tokens: their learning rates, checkpoints, precision, and a teacher."""

import pytest
import torch
import torch.nn.functional as F
from helpers.models import tiny_llama
from helpers.rows import question_rows
from helpers.trainers import encoded, trainer
from transformers import TrainerCallback

from prompt_tuning import add_soft_prompt, prompt_config
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.encoding.batching import source_length

ENDING = 2  # So many tokens end every source.
SETTINGS = dict(max_steps=6, learning_rate=1e-2, layer_vectors_learning_rate=4e-3, lr_scheduler_type="constant")


def with_trained_ending(row, size):
    end = source_length(row["labels"])
    ids = row["input_ids"]
    return row | {"input_ids": [*ids[: end - ENDING], *range(size, size + ENDING), *ids[end:]]}


def run(tokenizer, folder, **settings):
    """Return a trainer of vectors in every layer at four virtual tokens and at the ending of every source."""
    base = tiny_llama(len(tokenizer))
    row = encoded(tokenizer, question_rows(1))[0]
    ending = row["input_ids"][: source_length(row["labels"])][-ENDING:]
    torch.manual_seed(2)
    config = prompt_config(base, 4, PromptArguments(layer_vectors=True), text_ids=ending)
    model = add_soft_prompt(base, config, layer_scales=torch.tensor([0.5, 2.0]))
    new = trainer(model, tokenizer, folder, **(SETTINGS | settings))
    arguments = dict(fn_kwargs={"size": len(tokenizer)})
    new.train_dataset = new.train_dataset.map(with_trained_ending, **arguments)
    new.eval_dataset = new.eval_dataset.map(with_trained_ending, **arguments)
    return new


def state(model):
    encoder = model.prompt_encoder["default"]
    tensors = [encoder.embedding.weight.detach(), *encoder.trained_tokens.tensors().values()]
    return [tensor.clone() for tensor in tensors]


class Rates(TrainerCallback):
    def __init__(self):
        self.seen = {}

    def on_pre_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        names = {id(parameter): name.rpartition(".")[2] for name, parameter in model.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self.seen.setdefault(names[id(parameter)], []).append(group["lr"])


def test_layer_vectors_have_a_learning_rate_of_their_own_also_after_a_resume(tokenizer, tmp_path):
    rates = Rates()
    first = run(tokenizer, tmp_path, save_strategy="steps", save_steps=2)
    first.add_callback(rates)
    first.train()
    assert rates.seen == {"weight": [1e-2] * 6, "text_embeddings": [1e-2] * 6, "layer_vectors": [4e-3] * 6}
    moved = state(first.model)
    assert all(tensor.abs().sum() > 0 for tensor in moved)

    rates = Rates()
    resumed = run(tokenizer, tmp_path, save_strategy="no")
    resumed.add_callback(rates)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert rates.seen["layer_vectors"] == [4e-3] * 2
    for whole, again in zip(moved, state(resumed.model), strict=True):
        assert torch.equal(whole, again)


def test_load_best_restores_the_vectors_of_the_best_step(tokenizer, tmp_path):
    # The highest loss is the best here, which is that of an early step.
    best = run(
        tokenizer,
        tmp_path,
        **dict(load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True),
        **dict(eval_strategy="steps", eval_steps=1, save_steps=1, save_total_limit=8, predict_with_generate=False),
    )
    best.train()
    step = best.state.best_global_step
    assert step < 6
    short = run(tokenizer, tmp_path / "short", max_steps=step, save_strategy="no")
    short.train()
    for ours, theirs in zip(state(best.model), state(short.model), strict=True):
        assert torch.equal(ours, theirs)


OTHERS = {
    "checkpointing": dict(activation_checkpointing=True),
    "accumulation": dict(gradient_accumulation_steps=2, per_device_train_batch_size=2),
    "bf16": dict(bf16=True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_ways_to_train_take_the_same_steps(name, tokenizer, tmp_path):
    same = dict(train_sampling_strategy="sequential", max_steps=3)
    whole = run(tokenizer, tmp_path / "whole", **same)
    whole.train()
    other = run(tokenizer, tmp_path / "other", **same | OTHERS[name])
    other.train()
    losses, expected = (
        [entry["loss"] for entry in trained.state.log_history if "loss" in entry] for trained in (other, whole)
    )
    assert losses == pytest.approx(expected, abs=0.06 if name == "bf16" else 1e-4)
    for ours, theirs in zip(state(other.model), state(whole.model), strict=True):
        assert ours.dtype == torch.float32
        if name != "bf16":  # The first steps of AdamW follow the sign of a gradient, however small.
            assert (ours - theirs).norm() < 1e-4 * theirs.norm()


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_a_teacher_trains_them_to_its_own_logits(loss, tokenizer, tmp_path):
    taught = run(tokenizer, tmp_path)
    rows = taught.train_dataset
    model = taught.model
    head = model.get_base_model().get_output_embeddings()
    torch.manual_seed(0)
    targets = [sum(label != -100 for label in labels) for labels in rows["labels"]]
    taught.teacher = {row: torch.randn(count, 32) for row, count in zip(rows["row"], targets, strict=True)}
    taught.distillation = loss
    torch.nn.init.normal_(model.prompt_encoder["default"].trained_tokens.layer_vectors, std=0.2)
    columns = rows.select_columns(["input_ids", "labels", "row"])
    batch = taught.data_collator([columns[0], columns[1]])
    model.train()
    value = taught.compute_loss(model, dict(batch))
    model.eval()
    total = 0
    for n in (0, 1):
        logits = model(torch.tensor([rows[n]["input_ids"]])).logits[0, -targets[n] - 1 : -1]
        expected = head(taught.teacher[rows[n]["row"]])
        if loss == "kl":
            total += F.kl_div(logits.log_softmax(-1), expected.log_softmax(-1), reduction="sum", log_target=True)
        else:
            total += (logits - expected).square().mean(-1).sum()
    assert value.item() == pytest.approx(total.item() / sum(targets[:2]), rel=1e-4)
