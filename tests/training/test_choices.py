"""Check the losses over choices: loss and gradient are those of plain rows, and recipes train with them or refuse."""

import json

import pytest
import torch
import torch.nn.functional as F
import yaml
from datasets import Dataset
from helpers.architectures import build
from helpers.rows import question_rows, write_jsonl
from peft import LoraConfig, get_peft_model

from prompt_tuning import Encoder, PromptTuningArguments, Template, add_soft_prompt, encode, prompt_config
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.cli.main import main
from prompt_tuning.encoding.batching import source_length
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.training import ChoiceTrainer

TEMPLATE = Template(
    "{{ context }} {{ question }}", "{{ answers.text[0] }}", answer_choices="{{ choices | join(' ||| ') }}"
)
ENDING = 2
CASES = {
    "soft prompt": ("llama", {}),
    "behind a cache": ("bloom", {}),
    "prefix": ("llama", dict(method="prefix_tuning")),
    "trained text": ("llama", dict(layer_vectors=True)),
    "lora": ("llama", None),
    "whole model": ("llama", None),
}


def closed_rows(count, more_choices=True):
    """Make rows with two choices, every third one with a third choice of more tokens."""
    rows = []
    for number, row in enumerate(question_rows(count)):
        choices = ["yes", "no"]
        if more_choices and number % 3 == 0:
            choices.append("in Lima")
        answer = choices[number % len(choices)]
        rows.append({**row, "choices": choices, "answers": {"text": [answer], "answer_start": [0]}})
    return rows


def encoded(tokenizer, rows):
    encoded_rows, report = encode(Dataset.from_list(rows), Encoder(TEMPLATE, tokenizer), training=True)
    assert not report.problems
    return encoded_rows


def with_trained_ending(row, size):
    end = source_length(row["labels"])
    ids = row["input_ids"]
    return row | {"input_ids": [*ids[: end - ENDING], *range(size, size + ENDING), *ids[end:]]}


def model_and_rows(case, tokenizer):
    """Return a model, whose trained numbers are not at a start of zeros, and six rows for it."""
    architecture, settings = CASES[case]
    base = build(architecture, vocabulary=len(tokenizer), positions=256)
    rows = encoded(tokenizer, closed_rows(6))
    if case == "whole model":
        model = base.requires_grad_(True)
    elif settings is None:
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2))
    else:
        arguments = PromptArguments(**settings)
        text_ids = rows[0]["input_ids"][:ENDING] if arguments.layer_vectors else ()
        scales = {"layer_scales": torch.tensor([0.5, 2.0, 1.0])} if arguments.layer_vectors else {}
        model = add_soft_prompt(base, prompt_config(base, 4, arguments, text_ids=text_ids), **scales)
        if text_ids:
            rows = rows.map(with_trained_ending, fn_kwargs={"size": len(tokenizer)})
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trained(model):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, rows


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def choice_trainer(model, rows, tokenizer, folder, loss="choices", **settings):
    normalization, weights = settings.pop("normalization", "none"), settings.pop("class_weights", "none")
    args = PromptTuningArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **settings)
    return ChoiceTrainer(
        model=model, processing_class=tokenizer, train_dataset=rows, args=args, choice_loss=loss,
        choice_normalization=normalization, class_weights=weights,
    )  # fmt: skip


def plain_loss(model, rows, loss, normalization):
    """Return the mean loss over rows, from one forward without labels for each choice of each row."""
    losses = []
    for row in rows:
        source = row["input_ids"][: source_length(row["labels"])]
        scores = []
        for text, choice in zip(row["choices"], row["choice_ids"], strict=True):
            logits = model(input_ids=torch.tensor([[*source, *choice]])).logits[0, -len(choice) - 1 : -1]
            score = logits.log_softmax(-1)[torch.arange(len(choice)), choice].sum()
            scores.append(score / (len(text) if normalization == "characters" else 1))
        p = torch.stack(scores).double().softmax(0)
        t = torch.tensor([float(text == row["references"][0]) for text in row["choices"]])
        if loss == "brier":
            losses.append(((p - t) ** 2).mean())
        elif len(p) == 2:  # This is the formula of the article.
            losses.append(-(t[0] * p[0].log() + (1 - t[0]) * (1 - p[0]).log()))
        else:
            losses.append(-(t * p.log()).sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("loss", "normalization"), [("choices", "none"), ("brier", "characters")])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_single_rows(case, loss, normalization, tokenizer, tmp_path):
    model, rows = model_and_rows(case, tokenizer)
    run = choice_trainer(model, rows, tokenizer, tmp_path, loss, normalization=normalization)
    model.train()
    run.state.max_steps = 1
    expected = plain_loss(model, rows, loss, normalization)
    reference = torch.autograd.grad(expected, trained(model))
    features = [{key: row[key] for key in ("input_ids", "labels", "row")} for row in rows]
    batches = [run.data_collator(features[:4]), run.data_collator(features[4:])]
    batches, num_rows = run.get_batch_samples(iter(batches), 2, torch.device("cpu"))
    assert num_rows == 6  # The batches of a step are averaged over rows, whatever their targets' lengths.
    total = sum(run.compute_loss(model, batch, num_items_in_batch=num_rows) for batch in batches)
    assert total.item() == pytest.approx(expected.item(), abs=1e-5)
    for gradient, wanted in zip(torch.autograd.grad(total, trained(model)), reference, strict=True):
        assert wanted.norm() > 0
        assert (gradient - wanted).norm() < 1e-4 * wanted.norm()


def test_a_balanced_row_counts_by_how_rare_its_target_is(tokenizer, tmp_path):
    model, rows = model_and_rows("soft prompt", tokenizer)
    run = choice_trainer(model.train(), rows, tokenizer, tmp_path, "brier", class_weights="balanced")
    targets = [row["choices"][row["target_choice"]] for row in rows]
    assert len({targets.count(target) for target in targets}) > 1
    expected = 0.0
    for number, target in enumerate(targets):
        weight = len(rows) / (len(set(targets)) * targets.count(target))
        expected += weight * plain_loss(model, rows.select([number]), "brier", "none").item() / len(rows)
    batch = run.data_collator([{key: row[key] for key in ("input_ids", "labels", "row")} for row in rows])
    assert run.compute_loss(model, batch).item() == pytest.approx(expected, abs=1e-5)


def test_the_probabilities_of_choices_are_those_of_single_rows(tokenizer, tmp_path):
    model, rows = model_and_rows("soft prompt", tokenizer)
    run = choice_trainer(model, rows, tokenizer, tmp_path, normalization="characters")
    texts, _ = run.predict_texts_to_limit(rows)
    for row, text, probabilities in zip(rows, texts, run.choice_probabilities(rows), strict=True):
        assert sum(probabilities) == pytest.approx(1)
        assert row["choices"][probabilities.index(max(probabilities))] == text
        right = probabilities[row["target_choice"]]
        single = plain_loss(model.eval(), Dataset.from_list([row]), "brier", "characters").item()
        errors = [(p - (number == row["target_choice"])) ** 2 for number, p in enumerate(probabilities)]
        assert 0 < right < 1 and sum(errors) / len(errors) == pytest.approx(single, abs=1e-5)


def test_the_choices_of_a_row_share_its_source_in_one_call(tokenizer, tmp_path):
    model, _ = model_and_rows("soft prompt", tokenizer)
    rows = encoded(tokenizer, [row | {"context": 2 * row["context"]} for row in closed_rows(6)])
    run = choice_trainer(model, rows, tokenizer, tmp_path)
    batch = run.data_collator([{key: row[key] for key in ("input_ids", "labels", "row")} for row in rows])
    lengths = []
    model.get_base_model().model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    run.compute_loss(model.train(), batch)
    sources = sum(source_length(row["labels"]) for row in rows)
    choices = sum(len(ids) for row in rows for ids in row["choice_ids"])
    assert len(lengths) == 1
    assert lengths[0] <= 4 + sources + choices


def test_a_row_that_another_process_repeats_counts_once(tokenizer, tmp_path):
    model, rows = model_and_rows("soft prompt", tokenizer)
    run = choice_trainer(model, rows, tokenizer, tmp_path)
    features = [{key: row[key] for key in ("input_ids", "labels", "row")} for row in rows.select([0, 1])]

    def loss(without):
        batch = run.data_collator(features)
        batch["labels"][without] = -100
        return run.compute_loss(model.train(), batch, num_items_in_batch=10)

    alone = run.compute_loss(model.train(), run.data_collator(features[:1]), num_items_in_batch=10)
    assert loss([1]).item() == pytest.approx(alone.item(), abs=1e-6)
    loss_of_no_row = loss([0, 1])
    loss_of_no_row.backward()
    assert loss_of_no_row.item() == 0 and not model.prompt_encoder["default"].embedding.weight.grad.any()


@pytest.mark.parametrize("loss", ["choices", "brier"])
def test_training_learns_the_right_choices_and_evaluates_as_before(loss, tokenizer, tmp_path):
    base = build("llama", vocabulary=len(tokenizer), positions=256)
    model = add_soft_prompt(base, prompt_config(base, 4))
    rows = encoded(tokenizer, closed_rows(6, more_choices=False))
    settings = dict(
        max_steps=15, learning_rate=0.1, per_device_train_batch_size=6, logging_steps=1, save_strategy="no"
    )
    run = choice_trainer(model, rows, tokenizer, tmp_path, loss, normalization="tokens", **settings)
    before = run.evaluate(rows)["eval_loss"]
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    targets = [[label for label in row["labels"] if label != -100] for row in rows]
    total = 0
    for row, target in zip(rows, targets, strict=True):
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, -len(target) - 1 : -1]
        total += F.cross_entropy(logits, torch.tensor(target), reduction="sum").item()
    after = run.evaluate(rows)["eval_loss"]
    assert after != before and after == pytest.approx(total / sum(map(len, targets)), rel=1e-4)


def test_the_trainer_refuses_what_its_loss_does_not_hold_for(tokenizer, tmp_path):
    model, rows = model_and_rows("soft prompt", tokenizer)
    with pytest.raises(RecipeError, match="does not hold for choice_normalization unconditional"):
        choice_trainer(model, rows, tokenizer, tmp_path, normalization="unconditional")
    with pytest.raises(RecipeError, match="does not hold for label_smoothing_factor"):
        choice_trainer(model, rows, tokenizer, tmp_path, label_smoothing_factor=0.1)
    run = choice_trainer(model, rows.remove_columns("choice_ids"), tokenizer, tmp_path, max_steps=1)
    with pytest.raises(DataError, match="training rows have no column choice_ids"):
        run.train()


def test_a_recipe_trains_on_choices_or_names_the_obstacle(recipe_file, model_folders, tmp_path, capsys):
    for split, count in (("train", 24), ("validation", 6), ("test", 9)):
        write_jsonl(tmp_path / f"{split}.jsonl", closed_rows(count, more_choices=split == "train"))
    closed = {"template": "question_answering/multiple_choice", "max_source_tokens": 200, "loss": "choices"}
    trains = closed | {"choice_normalization": "tokens", "metrics": "[exact_match]", "class_weights": "balanced"}
    assert main(["train", str(recipe_file(**trains)), "--logging_steps", "1"]) == 0
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["loss"] == "choices"
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["train_steps"] == 4 and 0 <= results["soft_prompt"]["exact_match"] <= 100
    log = json.loads((tmp_path / "run" / "log_history.json").read_text())
    assert all(entry["loss"] < 5 for entry in log if "loss" in entry)  # The cross entropy of targets is above 5.
    scores = results["probabilities"]["soft_prompt"]
    assert scores["accuracy"] == pytest.approx(results["soft_prompt"]["exact_match"], abs=0.01)
    assert (
        0 <= scores["auc"] <= 1 and sum(of_bin["rows"] for of_bin in scores["bins"]) == 9 and scores["macro_f1"] <= 100
    )
    assert f"with soft prompt: accuracy {scores['accuracy']:.1f}, macro F1" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Reliability: how often" in page and "series2" in page and f"AUC {scores['auc']:.3f}" in page
    assert "which of the choices is right, by the cross entropy" in (tmp_path / "run" / "README.md").read_text()
    for settings, message in (
        (
            {"class_weights": "balanced", "loss": "cross_entropy"},
            "class_weights has no effect with loss cross_entropy",
        ),
        ({"template": "question_answering/plain"}, "loss choices: template question_answering/plain has no answer"),
        ({"model_name_or_path": model_folders["t5"]}, "loss choices: choices are learned by causal models only"),
        ({"score_choices": "false"}, "loss choices scores choices, and score_choices is false"),
        ({"choice_normalization": "unconditional"}, "loss choices divides likelihoods, and unconditional subtracts"),
        ({"streaming": "true"}, "streaming: loss choices needs all training rows before training"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect with loss choices"),
        ({"loss": "brier", "teacher_template": "x.yaml"}, "teacher_template is set but loss is brier"),
        (
            {"method": "multitask_prompt_tuning", "tasks": "[a.yaml, b.yaml]"},
            "loss choices is for one task; multitask_prompt_tuning learns the targets",
        ),
    ):
        assert main(["check", str(recipe_file(**(closed | settings)))]) == 2
        assert message in capsys.readouterr().err
