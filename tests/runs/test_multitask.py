"""Check multitask prompts: a shared prompt times a low-rank matrix of each task, and the extracted prompts."""

import json

import pytest
import torch
from datasets import Dataset
from helpers.architectures import ROWS, build, reference_greedy, reference_loss, right_padded
from helpers.models import forbid_model_loading, tiny_bart, tiny_t5
from helpers.paths import file_names
from helpers.rows import PLACES, write_jsonl
from huggingface_hub import ModelCard
from peft import PeftModel, PeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from prompt_tuning import (
    PromptTuningArguments,
    PromptTuningTrainer,
    SharedPrefixModel,
    add_soft_prompt,
    load_adapter,
    prompt_config,
)
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.cli.main import main
from prompt_tuning.errors import AdapterError, RecipeError
from prompt_tuning.models.encoder_decoder import EncoderDecoderPromptModel
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.multitask import task_prompt

VOCABULARY, LENGTH = 97, 4
TASKS = torch.tensor([2, 0, 2, 1])  # The task of every row of ROWS.
ENCODER_DECODER = {"t5": tiny_t5, "bart": tiny_bart}


def base_model(family):
    return ENCODER_DECODER[family](VOCABULARY) if family in ENCODER_DECODER else build(family)


def multitask_model(base, tasks=3, ranks=1, initial=None):
    arguments = PromptArguments(method="multitask_prompt_tuning", tasks=["a"] * tasks, num_ranks=ranks)
    torch.manual_seed(3)
    initial = torch.randn(LENGTH, 32) if initial is None else initial
    return add_soft_prompt(base, prompt_config(base, LENGTH, arguments), initial)


def scattered(base, **settings):
    """Return a model whose tasks have different prompts, such as after training."""
    model = multitask_model(base, **settings)
    for parameter in model.prompt_encoder.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return model


def written(model, task_ids):
    inputs = {name: tensor for name, tensor in right_padded().items() if name != "labels"}
    settings = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    return model.generate(**inputs, task_ids=task_ids, **settings)[:, inputs["input_ids"].shape[1] :].tolist()


def gradients(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.prompt_encoder.parameters()])


def token_rows(encoder_decoder, count=12):
    rows = []
    for number in range(count):
        source = [7, 20 + number, *range(30, 31 + number % 5)]
        target = [40 + number % 3, 41, 1]
        labels = target if encoder_decoder else [-100] * len(source) + target
        ids = source if encoder_decoder else source + target
        rows.append({"input_ids": ids, "labels": labels, "task_ids": number % 3, "row": number})
    return Dataset.from_list(rows)


def trainer(model, tokenizer, folder, **settings):
    settings = {"learning_rate": 0.1, "per_device_train_batch_size": 6, "max_steps": 4, "save_steps": 2} | settings
    arguments = PromptTuningArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", seed=5, **settings
    )
    rows = token_rows(model.config.is_encoder_decoder)
    return PromptTuningTrainer(
        model=model, args=arguments, processing_class=tokenizer, train_dataset=rows, eval_dataset=rows,
        generation_kwargs={"max_new_tokens": 4},
    )  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_task_starts_at_the_shared_prompt(ranks):
    initial = build("llama").get_input_embeddings().weight[:LENGTH]
    model = multitask_model(build("llama"), ranks=ranks, initial=initial)
    for task in range(3):
        assert torch.equal(task_prompt(model, task), initial)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text, window 6", "bloom"])
def test_a_mixed_batch_gives_every_row_the_prompt_of_its_task(architecture, ranks):
    base = build(architecture)
    model = scattered(base, ranks=ranks)
    assert model.execution_path.name == ("cache" if architecture == "bloom" else "packed")
    prompts = [model.get_prompt(1, task_ids=task[None])[0] for task in TASKS]
    expected = reference_loss(base, prompts)
    expected.backward()
    reference = gradients(model)
    model.zero_grad()
    loss = model(**right_padded(), task_ids=TASKS).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert (gradients(model) - reference).norm() / reference.norm() < 1e-4
    model.zero_grad()
    # PEFT's own forward is run row by row, because padding changes its result.
    total = 0
    targets = 0
    for number, task in enumerate(TASKS):
        row = {name: tensor[number : number + 1, : len(ROWS[number])] for name, tensor in right_padded().items()}
        count = int((row["labels"] != -100).sum())
        base.set_attn_implementation("sdpa")
        total += PeftModelForCausalLM.forward(model, **row, task_ids=task[None]).loss * count
        targets += count
    assert (total / targets).item() == pytest.approx(loss.item(), abs=1e-5)
    (total / targets).backward()
    assert (gradients(model) - reference).norm() / reference.norm() < 1e-4


def test_the_prompt_of_a_task_is_computed_once_for_all_its_rows(monkeypatch):
    model = scattered(build("llama"))
    computed = []
    monkeypatch.setattr(
        model, "get_prompt", lambda batch_size, task_ids: computed.append(int(task_ids)) or torch.zeros(1, LENGTH, 32)
    )
    model(**right_padded(), task_ids=TASKS)
    assert sorted(computed) == [0, 1, 2]


@pytest.mark.parametrize("architecture", ["llama", "mistral, window 6", "bloom"])
def test_rows_of_several_tasks_are_generated_together(architecture):
    base = build(architecture)
    model = scattered(base).eval()
    prompts = [task_prompt(model, int(task)) for task in TASKS]
    assert written(model, TASKS) == [
        reference_greedy(base, *prompt_and_row, 6) for prompt_and_row in zip(prompts, ROWS, strict=True)
    ]


def test_pefts_forward_takes_the_task_ids_of_an_unknown_architecture():
    base = build("llama")
    base.config.model_type = "unknown"
    model = scattered(base)
    assert model.execution_path.name == "plain"
    prompts = [task_prompt(model, int(task)) for task in TASKS]
    loss = model(**right_padded(), task_ids=TASKS).loss
    assert loss.item() == pytest.approx(reference_loss(base, prompts).item(), abs=1e-5)
    assert written(model, TASKS) == [
        reference_greedy(base, *prompt_and_row, 6) for prompt_and_row in zip(prompts, ROWS, strict=True)
    ]


def test_missing_unknown_or_too_few_task_ids_are_an_error():
    model = multitask_model(build("llama"))
    with pytest.raises(AdapterError, match="no task_ids for adapter default; give each row one from 0 to 2"):
        model(**right_padded())
    with pytest.raises(AdapterError, match="task id 3 for adapter default"):
        model(**right_padded(), task_ids=TASKS + 1)
    with pytest.raises(AdapterError, match="task_ids: 2 ids for 4 rows"):
        model(**right_padded(), task_ids=TASKS[:2])


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_every_tensor_is_trained_and_a_resumed_run_has_the_same_ones(family, ranks, tokenizer, tmp_path):
    def fresh():
        return multitask_model(base_model(family), ranks=ranks)

    def tensors(model):
        return {name: tensor.detach().clone() for name, tensor in model.prompt_encoder.named_parameters()}

    model = fresh()
    start = tensors(fresh())
    before = trainer(model, tokenizer, tmp_path / "start").evaluate()["eval_loss"]
    plain = add_soft_prompt(
        base_model(family), prompt_config(model.get_base_model(), LENGTH), start["default.embedding.weight"]
    )
    assert trainer(plain, tokenizer, tmp_path / "plain").evaluate()["eval_loss"] == pytest.approx(before, abs=1e-6)
    run = trainer(model, tokenizer, tmp_path / "whole")
    run.train()
    straight = tensors(model)
    assert len(straight) == 3 and run.evaluate()["eval_loss"] < before
    for name, tensor in straight.items():
        # Every virtual token and every task has changed.
        assert (tensor != start[name]).flatten(1).any(1).all(), name
    for rank in range(ranks):
        assert (straight["default.prefix_task_cols"] != start["default.prefix_task_cols"])[:, :, rank].all()
        assert (straight["default.prefix_task_rows"] != start["default.prefix_task_rows"])[:, rank].all()

    resumed = fresh()
    trainer(resumed, tokenizer, tmp_path / "parts").train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert all(torch.equal(tensor, straight[name]) for name, tensor in tensors(resumed).items())

    # PEFT's file holds the same tensors, so that training can resume from it, too.
    wrapper = EncoderDecoderPromptModel if family in ENCODER_DECODER else SharedPrefixModel
    for cls, folder in ((wrapper, tmp_path / "parts/checkpoint-4"), (PeftModel, tmp_path / "saved")):
        model.save_pretrained(tmp_path / "saved")
        again = cls.from_pretrained(base_model(family), folder)
        assert all(torch.equal(tensor, straight[name]) for name, tensor in tensors(again).items())
    continued = fresh()
    continued.load_adapter(tmp_path / "saved", "default", is_trainable=True)
    assert all(torch.equal(tensor, straight[name]) for name, tensor in tensors(continued).items())


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_best_checkpoint_by_the_loss_of_all_tasks_is_loaded(family, tokenizer, tmp_path):
    model = multitask_model(base_model(family))
    run = trainer(
        model, tokenizer, tmp_path, learning_rate=3.0, max_steps=8, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True,
    )  # fmt: skip
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_trainer_without_a_recipe_evaluates_by_generation(family, tokenizer, tmp_path):
    model = scattered(base_model(family))
    run = trainer(model, tokenizer, tmp_path)
    together = run.predict(run.eval_dataset).predictions.tolist()
    alone = [run.predict(run.eval_dataset.select([number])).predictions[0].tolist() for number in range(3)]
    for one, other in zip(together, alone, strict=False):
        assert [token for token in one if token > 0] == [token for token in other if token > 0]


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_the_extracted_prompt_of_a_task_gives_its_logits(family, tmp_path):
    model = scattered(base_model(family)).eval()
    batch = {name: tensor[:1, : len(ROWS[0])] for name, tensor in right_padded().items()}
    batch["labels"] = batch["input_ids"]
    for task in range(3):
        expected = model(**batch, task_ids=torch.tensor([task])).logits
        base = base_model(family)
        single_task = add_soft_prompt(base, prompt_config(base, LENGTH), task_prompt(model, task))
        single_task.save_pretrained(tmp_path / str(task))
        logits = PeftModel.from_pretrained(base_model(family), tmp_path / str(task))(**batch).logits
        if family == "llama":  # SharedPrefixModel gives only the logits of the targets.
            logits = logits[0, LENGTH:-1]
        assert torch.allclose(logits, expected, atol=1e-5)


# The tests below use the command line.


def summary_rows(count, shift=0):
    rows = []
    for number in range(count):
        place = PLACES[(number + shift) % 10]
        document = f"The market in {place} opened at eight. Many people came, and {number + 2} of them sang."
        rows.append({"document": document, "summary": f"A market opened in {place}."})
    return rows


@pytest.fixture
def recipes(recipe_file, model_folders, tmp_path, monkeypatch):
    """Write qa.yaml and summaries.yaml, and return a function that writes a multitask recipe over both."""
    monkeypatch.chdir(tmp_path)
    recipe_file().rename(tmp_path / "qa.yaml")
    for split, count, shift in (("train", 20, 0), ("validation", 5, 3), ("test", 7, 5)):
        write_jsonl(tmp_path / f"summaries_{split}.jsonl", summary_rows(count, shift))
    files = "".join(f"{split}_file: summaries_{split}.jsonl\n" for split in ("train", "validation", "test"))
    (tmp_path / "summaries.yaml").write_text(
        f"model_name_or_path: {model_folders['llama']}\ntask: summarization\ntemplate: summarization/plain\n{files}"
        "max_source_tokens: 64\nmax_target_tokens: 24\ngeneration_num_beams: 2\nmetrics: [rouge]\n"
        "init: text\ninit_text: Only for this task.\n"
    )

    def write(**changes):
        settings = {
            "model_name_or_path": model_folders["llama"],
            "method": "multitask_prompt_tuning",
            "tasks": "[qa.yaml, summaries.yaml]",
            "num_virtual_tokens": 5,
            "output_dir": tmp_path / "run",
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "save_steps": 2,
            "learning_rate": 0.3,
            "use_cpu": "true",
            "disable_tqdm": "true",
        } | changes
        path = tmp_path / "both.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in settings.items() if value is not None))
        return path

    return write


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_two_tasks_train_together_and_every_task_has_a_run_folder(family, recipes, model_folders, tmp_path, capsys):
    recipe = str(recipes(model_name_or_path=model_folders[family], num_ranks=2))
    assert main(["train", recipe]) == 0
    capsys.readouterr()
    run = tmp_path / "run"
    assert file_names(run) == {
        "adapter_config.json", "adapter_model.safetensors", "base_model.json", "checkpoint-2", "checkpoint-4",
        "initial_prompt.safetensors", "log_history.json", "qa", "recipe.yaml", "report.html", "results.json",
        "summaries",
    }  # fmt: skip
    results = json.loads((run / "results.json").read_text())
    assert list(results["tasks"]) == ["qa", "summaries"]
    assert results["method"] == "multitask_prompt_tuning" and results["train_rows"] == 44
    assert results["train_steps"] == 4 and results["trainable_parameters"] == 5 * 32 + 2 * 2 * (5 + 32)
    qa, summaries = results["tasks"].values()
    assert set(qa["soft_prompt"]) == set(qa["hard_prompt"]) == {"f1", "exact_match"}
    assert "rougeL" in summaries["soft_prompt"] and summaries["decoding"] == {"max_new_tokens": 24, "num_beams": 2}
    assert qa["rows"] == 9 and qa["train_rows"] == 24 and summaries["rows"] == 7 and summaries["train_rows"] == 20

    auto = AutoModelForCausalLM if family == "llama" else AutoModelForSeq2SeqLM
    both = PeftModel.from_pretrained(auto.from_pretrained(model_folders[family]), run)
    for number, (name, of_task) in enumerate(results["tasks"].items()):
        assert file_names(run / name) == {
            "README.md", "adapter_config.json", "adapter_model.safetensors", "base_model.json",
            "initial_prompt.safetensors", "predictions", "recipe.yaml", "report.html", "results.json", "template.yaml",
        }  # fmt: skip
        assert json.loads((run / name / "results.json").read_text()) == of_task
        plain = PeftModel.from_pretrained(auto.from_pretrained(model_folders[family]), run / name)
        assert plain.active_peft_config.peft_type == "PROMPT_TUNING" and of_task["trainable_parameters"] == 5 * 32
        assert torch.equal(plain.get_prompt(1)[0], task_prompt(both, number))
        assert "by multitask prompt tuning together with" in ModelCard.load(run / name / "README.md").text

        rows = [json.loads(line) for line in (run / name / "predictions" / "test.jsonl").read_text().splitlines()]
        source = {"qa": "test.jsonl", "summaries": "summaries_test.jsonl"}[name]
        capsys.readouterr()
        assert main(["predict", "--adapter", str(run / name), "--input", source]) == 0
        predicted = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
        assert predicted == [row["soft_prompt"] for row in rows]
        task_recipe = str(run / name / "recipe.yaml")
        assert main(["evaluate", task_recipe, "--adapter", str(run / name), "--output_dir", str(tmp_path / name)]) == 0
        assert json.loads((tmp_path / name / "results.json").read_text())["soft_prompt"] == of_task["soft_prompt"]
        assert main(["inspect", str(run / name)]) == 0 and "moved" in capsys.readouterr().out

    report = (run / "report.html").read_text()
    assert 'href="qa/report.html"' in report and 'href="summaries/report.html"' in report and "rougeL" in report
    assert 'href="../report.html"' in (run / "qa" / "report.html").read_text()
    assert main(["report", str(run)]) == 0 and capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text() == report
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "== qa\n" in shown and "== summaries\n" in shown and shown.count("with soft prompt ") == 2 + 6
    assert f"prompt-tuning predict --adapter {run / 'qa'} " in shown


def test_the_folder_of_all_tasks_names_their_folders(recipes, tmp_path, capsys):
    recipe, run = str(recipes()), str(tmp_path / "run")
    assert main(["train", recipe]) == 0
    capsys.readouterr()
    message = f"{run}: it holds the prompts of 2 tasks. Name the folder of one: {run}/qa, {run}/summaries"
    commands = [
        ["predict", "--adapter", run, "--input", "test.jsonl"],
        ["evaluate", "qa.yaml", "--adapter", run],
        ["evaluate", recipe, "--adapter", run],
        ["inspect", run],
        ["export", run, "exported"],
    ]
    for command in commands:
        assert main(command) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(AdapterError, match="holds the prompts of 2 tasks"):
        load_adapter(build("llama"), run)
    assert main(["train", recipe]) == 2
    assert "holds checkpoint-4 already" in capsys.readouterr().err


def test_the_folders_of_the_tasks_are_exported_together(recipes, tmp_path, caplog):
    recipe, summaries = recipes(save_strategy="'no'"), tmp_path / "summaries.yaml"
    summaries.write_text(summaries.read_text().replace("generation_num_beams: 2\n", ""))
    assert main(["train", str(recipe)]) == 0
    runs = [str(tmp_path / "run" / name) for name in ("qa", "summaries")]
    assert main(["export", *runs, "exported", "--check", "test.jsonl", "summaries_test.jsonl"]) == 0
    assert "qa: 9 of 9 rows" in caplog.text and "summaries: 7 of 7 rows" in caplog.text


def test_an_interrupted_run_resumes_and_its_saved_recipe_runs_again(recipes, tmp_path):
    best = ["--eval_strategy", "steps", "--eval_steps", "2", "--load_best_model_at_end"]
    best += ["--early_stopping_patience", "1"]
    assert main(["train", str(recipes()), *best]) == 0
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["best_checkpoint"].startswith("checkpoint-")
    adapter = (run / "adapter_model.safetensors").read_bytes()
    again = tmp_path / "again"
    assert main(["train", str(run / "recipe.yaml"), "--output_dir", str(again)]) == 0
    assert (again / "adapter_model.safetensors").read_bytes() == adapter
    for name in ("adapter_model.safetensors", "results.json", "checkpoint-4"):
        path = run / name
        path.rename(tmp_path / f"gone-{name}")
    assert main(["train", str(recipes()), *best, "--resume_from_checkpoint", "true"]) == 0
    assert (run / "adapter_model.safetensors").read_bytes() == adapter


@pytest.mark.parametrize(
    "changes",
    [{"init": "frequent"}, {"init": "random"}, {"init": "text", "init_text": "Read.", "num_virtual_tokens": None}],
    ids=str,
)
def test_the_shared_prompt_starts_as_the_prompt_of_one_task_does(changes, recipes, tmp_path):
    assert main(["train", str(recipes(**changes, max_steps=1, save_strategy="'no'"))]) == 0
    start = (tmp_path / "run" / "initial_prompt.safetensors").read_bytes()
    assert start == (tmp_path / "run" / "qa" / "initial_prompt.safetensors").read_bytes()


def test_check_prepares_every_task_and_render_names_them(recipes, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    recipe = str(recipes())
    assert main(["check", recipe]) == 0
    shown = capsys.readouterr().out
    assert "both.yaml: ok, qa (train: 24 rows" in shown and "summaries (train: 20 rows" in shown
    assert main(["render", recipe]) == main(["evaluate", recipe]) == 2
    message = "both.yaml: its rows are those of its tasks; name one of qa.yaml, summaries.yaml"
    assert capsys.readouterr().err.count(message) == 2
    (tmp_path / "summaries_train.jsonl").write_text("\n")
    write_jsonl(tmp_path / "test.jsonl", [{"context": "c"}])
    assert main(["check", recipe, "--model_name_or_path", "/no/such"]) == 1
    errors = capsys.readouterr().err
    assert "summaries_train.jsonl: no rows" in errors and "test.jsonl" in errors
    assert errors.count("/no/such: no such folder") == 1


def test_a_task_that_lacks_rows_stops_the_run_before_the_model_loads(recipes, tmp_path, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    task = tmp_path / "summaries.yaml"
    task.write_text(task.read_text().replace("validation_file: summaries_validation.jsonl\n", ""))
    assert main(["train", str(recipes(eval_strategy="steps"))]) == 1
    assert "summaries.yaml: eval_strategy is steps but there are no validation rows" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"tasks": None}, ["tasks names no recipes; multitask_prompt_tuning needs two or more. Set `tasks: [qa.yaml"]),
        ({"tasks": "[qa.yaml]"}, ["tasks names 1 recipe; multitask_prompt_tuning needs two or more"]),
        ({"tasks": "[qa.yaml, gone.yaml]"}, ["gone.yaml: no such recipe"]),
        ({"tasks": "[qa.yaml, both.yaml]"}, ["both.yaml: its method is multitask_prompt_tuning too. Name recipes"]),
        ({"tasks": "[qa.yaml, ./qa.yaml]"}, ["qa.yaml: task qa is qa.yaml already. Rename one of the"]),
        ({"tasks": "[qa.yaml, bad.yaml]"}, ["bad.yaml: task is missing", "bad.yaml: no data: set dataset_name"]),
        ({"method": None}, ["tasks has no effect with method prompt_tuning; it belongs to multitask_prompt_tuning"]),
        (
            {"template": "summarization/plain", "task": "summarization", "train_file": "train.jsonl"},
            [
                f"{name} has no effect with method multitask_prompt_tuning. Set it in the recipes"
                for name in ("template", "task", "train_file")
            ],
        ),
        ({"init": "demonstrations"}, ["init demonstrations is for one task"]),
        ({"init": "template"}, ["init template is for one task"]),
        ({"adapter": "runs/x"}, ["To start from it, set init: adapter and init_adapter: runs/x"]),
        ({"metric_for_best_model": "f1"}, ["metric_for_best_model f1: only the loss is taken over all tasks"]),
        ({"num_ranks": 0}, ["num_ranks is 0; it must be at least 1"]),
        ({"residual": "true"}, ["residual has no effect with method multitask_prompt_tuning"]),
        ({"model_name_or_path": None}, ["model_name_or_path is missing"]),
    ],
    ids=str,
)
def test_mistakes_of_a_multitask_recipe_are_named(changes, messages, recipes, tmp_path):
    (tmp_path / "bad.yaml").write_text("template: question_answering/plain\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipes(**changes))
    for message in messages:
        assert message in str(caught.value)


def test_a_loss_that_is_not_finite_names_rows_by_the_file_of_their_task(recipes, tmp_path, capsys, monkeypatch):
    compute_loss = PromptTuningTrainer.compute_loss
    rows = []

    def not_finite(self, model, inputs, *args, **kwargs):
        rows.extend(zip(inputs["task_ids"].tolist(), inputs["row"].tolist(), strict=True))
        return compute_loss(self, model, inputs, *args, **kwargs) * torch.nan

    monkeypatch.setattr(PromptTuningTrainer, "compute_loss", not_finite)
    assert main(["train", str(recipes(save_steps=1))]) == 1
    files = [load_recipe(f"{name}.yaml", for_prediction=True).data.train_file for name in ("qa", "summaries")]
    named = ", ".join(f"{files[task]}, line {row + 1}" for task, row in rows)
    assert f"step 1: the loss is nan, and nothing was saved of it; its rows: {named}." in capsys.readouterr().err
