"""Check distillation from a long hard prompt: the teacher's logits are right, and the student follows them."""

import json

import pytest
import torch
import yaml
from datasets import Dataset
from helpers.architectures import SIZES, build
from helpers.rows import question_rows
from transformers import AutoConfig, AutoModelForCausalLM

from prompt_tuning import (
    Encoder,
    PromptTuningArguments,
    PromptTuningTrainer,
    Template,
    add_soft_prompt,
    encode,
    prompt_config,
)
from prompt_tuning.cli.main import main
from prompt_tuning.errors import ModelError
from prompt_tuning.training.losses import distillation_loss, teacher_states

PLAIN = Template("{{ question }}\nAnswer:", "{{ answers.text[0] }}", stop=("\n",))
SHOWN = Template(PLAIN.source, PLAIN.target, demonstrations=tuple(question_rows(12)[8:11]), stop=("\n",))


def encoded(template, tokenizer, count=8):
    rows, report = encode(Dataset.from_list(question_rows(count)), Encoder(template, tokenizer), training=True)
    assert not report.problems
    return rows


@pytest.mark.parametrize("template", [SHOWN, PLAIN])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "opt"])
def test_the_teachers_logits_are_those_of_single_rows(architecture, template, tokenizer):
    base = build(architecture, vocabulary=len(tokenizer), positions=256)
    rows = encoded(template, tokenizer)
    states = teacher_states(base, rows, max_tokens=400)
    assert set(states) == set(range(8))
    for row in rows:
        targets = [place for place, label in enumerate(row["labels"]) if label != -100]
        logits = base(torch.tensor([row["input_ids"]])).logits[0, targets[0] - 1 : targets[-1]]
        ours = base.get_output_embeddings()(states[row["row"]])
        assert torch.allclose(ours, logits, atol=1e-4)


def test_the_losses_equal_torchs_and_are_zero_for_the_teacher_itself():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 11), torch.randn(5, 11)
    expected = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum() / 5
    assert distillation_loss(student, teacher, "kl").item() == pytest.approx(expected.item(), abs=1e-5)
    assert distillation_loss(student, teacher, "mse").item() == pytest.approx(
        torch.nn.functional.mse_loss(student, teacher).item(), abs=1e-6
    )
    for loss in ("kl", "mse"):
        assert distillation_loss(teacher, teacher, loss).item() == pytest.approx(0, abs=1e-6)
        halves = [distillation_loss(student[part], teacher[part], loss, 5) for part in (slice(2), slice(2, 5))]
        assert sum(halves).item() == pytest.approx(distillation_loss(student, teacher, loss).item(), abs=1e-6)


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_the_student_approaches_its_teacher_which_reads_every_row_once(loss, llama, tokenizer, tmp_path):
    model = add_soft_prompt(llama, prompt_config(llama, 6), torch.zeros(6, 32))
    teacher = teacher_states(llama, encoded(SHOWN, tokenizer), max_tokens=4000)
    rows = encoded(PLAIN, tokenizer)
    calls = []
    llama.model.register_forward_hook(lambda *args: calls.append(1))
    run = PromptTuningTrainer(
        model=model, processing_class=tokenizer, train_dataset=rows, eval_dataset=rows, teacher=teacher,
        distillation=loss, args=PromptTuningArguments(
            str(tmp_path), max_steps=40, learning_rate=0.1, per_device_train_batch_size=4, logging_steps=1,
            gradient_accumulation_steps=2, use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no",
        ),
    )  # fmt: skip
    run.train()
    assert len(calls) == 80  # Only the student's steps call the model.
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert run.evaluate()["eval_loss"] > 0  # An evaluation needs no teacher.


def test_a_row_that_another_process_repeats_is_distilled_only_once(llama, tokenizer, tmp_path):
    model = add_soft_prompt(llama, prompt_config(llama, 6), torch.zeros(6, 32))
    rows = encoded(PLAIN, tokenizer, 2)
    args = PromptTuningArguments(str(tmp_path), use_cpu=True, report_to="none")
    run = PromptTuningTrainer(
        model=model, processing_class=tokenizer, train_dataset=rows, args=args,
        teacher=teacher_states(llama, encoded(SHOWN, tokenizer, 2), max_tokens=4000),
    )  # fmt: skip

    def loss(*numbers, without=()):
        features = [{key: rows[number][key] for key in ("input_ids", "labels", "row")} for number in numbers]
        batch = run.data_collator(features)
        for place in without:  # `_without_repeated` does the same.
            batch["labels"][place] = -100
        return run.compute_loss(model.train(), batch, num_items_in_batch=10)

    assert loss(0, 1, without=[1]).item() == pytest.approx(loss(0).item(), abs=1e-6)
    loss_of_no_row = loss(0, 1, without=[0, 1])
    loss_of_no_row.backward()
    assert loss_of_no_row.item() == 0 and not model.prompt_encoder["default"].embedding.weight.grad.any()


def test_a_recipe_distils_and_a_wrong_teacher_is_refused(recipe_file, tmp_path, capsys):
    shown = tmp_path / "shown.yaml"
    plain = Template.load("question_answering/plain")
    shown.write_text(Template(plain.source, plain.target, demonstrations=tuple(question_rows(2))).to_yaml())
    assert main(["train", str(recipe_file(loss="kl", teacher_template=shown))]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert saved["loss"] == "kl" and saved["teacher_template"] == str(shown)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["train_steps"] == 4
    assert "train, as the teacher reads it: 24 rows" in capsys.readouterr().err

    other = tmp_path / "other.yaml"
    other.write_text(Template(plain.source, "It is {{ answers.text[0] }}").to_yaml())
    for settings, message in (
        ({"loss": "kl"}, "loss kl needs a teacher. Set teacher_template"),
        ({"teacher_template": shown}, "teacher_template is set but loss is cross_entropy"),
        ({"loss": "kl", "teacher_template": other}, "its target has other tokens in teacher_template"),
        (
            {"loss": "kl", "teacher_template": shown, "method": "lora"},
            "teacher_template has no effect with method lora",
        ),
        ({"loss": "kl", "teacher_template": shown, "max_teacher_tokens": 60}, "max_teacher_tokens is 60"),
        ({"loss": "mse", "teacher_template": shown, "label_smoothing_factor": 0.1}, "label_smoothing_factor has no"),
    ):
        changed = {"num_virtual_tokens": None if settings.get("method") else 6} | settings
        assert main(["check", str(recipe_file(**changed))]) == (1 if "max_teacher_tokens" in settings else 2)
        assert message in capsys.readouterr().err


def test_a_model_that_rescales_its_logits_is_refused_as_a_teacher(tokenizer):
    sizes = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("cohere2", **sizes, logit_scale=0.25)).eval()
    with pytest.raises(ModelError, match="unscaled logits; cohere2 rescales them"):
        teacher_states(base, encoded(PLAIN, tokenizer), max_tokens=400)
