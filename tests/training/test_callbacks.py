"""Stop runs by a kill, a signal, a loss that is not finite, a full disk or too little memory, and resume them."""

import json
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import forked
from helpers.models import tiny_llama
from helpers.paths import file_names
from helpers.trainers import PATIENT, interrupt_training
from safetensors.torch import load_file
from transformers import TrainerState

from prompt_tuning import PromptTuningArguments
from prompt_tuning.cli.main import main
from prompt_tuning.errors import RecipeError, TrainingError
from prompt_tuning.training.callbacks import Divergence
from prompt_tuning.training.checkpoints import KeepOnlyBest
from prompt_tuning.training.trainer import PromptTuningTrainer


def adapter(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def signalled(monkeypatch, *signals, at_step=3):
    """Let a training step send the process these signals."""
    step = PromptTuningTrainer.training_step

    def with_signals(self, *args, **kwargs):
        if self.state.global_step == at_step - 1:
            for number in signals:
                signal.raise_signal(number)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PromptTuningTrainer, "training_step", with_signals)


def test_a_run_killed_many_times_ends_with_the_adapter_of_an_uninterrupted_one(tmp_path):
    done = forked.run("helpers.killed_runs", tmp_path, "10")
    assert done.returncode == 0, done.stderr[-4000:]
    kills = json.loads(done.stdout)
    print(*kills, sep="\n")
    assert len(kills) == 10 and len({kill["after_step"] for kill in kills}) > 3
    assert sum(bool(kill["half_written"]) for kill in kills) > 1  # Some kills cut off a checkpoint.
    assert adapter(tmp_path / "killed") == adapter(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_full_disks_and_two_trainings_of_one_folder_lose_nothing(tmp_path):
    done = forked.run("helpers.hard_ends", tmp_path, "3", "1", "12")
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout)
    print(counts)
    assert sum(counts["full disks"].values()) == 3 and sum(counts["pairs"].values()) == 1
    assert counts["full disks"]["full, one line, resumed to the same adapter"] > 0
    assert sum(counts["commands"].values()) == 12
    assert counts["commands"]["full, one line, every earlier file kept"] > 6


@pytest.mark.parametrize(
    ("sent", "code", "save_strategy"), [(signal.SIGINT, 130, "steps"), (signal.SIGTERM, 143, "no")]
)
def test_a_signal_saves_a_checkpoint_and_names_the_command_that_resumes(
    sent, code, save_strategy, recipe_file, tmp_path, capsys, monkeypatch
):
    recipe = str(recipe_file(max_steps=5, save_steps=2, save_strategy=save_strategy, lr_scheduler_type="constant"))
    assert main(["train", recipe, "--output_dir", str(tmp_path / "whole")]) == 0
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        signalled(patch, sent)
        assert main(["train", recipe]) == code
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == (
        f"{sent.name}: stopped after step 3, whose checkpoint is saved; "
        f"to resume: prompt-tuning train {recipe} --resume_from_checkpoint true"
    )
    kept = file_names(tmp_path / "run")
    assert kept == {
        "checkpoint-3",
        "base_model.json",
        "recipe.yaml",
        *(["checkpoint-2"] if save_strategy == "steps" else []),
    }
    assert main(message.split(" prompt-tuning ")[1].split()) == 0
    assert adapter(tmp_path / "run") == adapter(tmp_path / "whole")


def test_a_second_signal_stops_at_once_and_leaves_nothing_half_written(recipe_file, tmp_path, capsys, monkeypatch):
    signalled(monkeypatch, signal.SIGINT, signal.SIGINT)
    assert main(["train", str(recipe_file()), "--save_steps", "2"]) == 130
    assert "interrupted; --resume_from_checkpoint true resumes" in capsys.readouterr().err
    assert file_names(tmp_path / "run") == {"checkpoint-2", "base_model.json", "recipe.yaml"}


@pytest.mark.parametrize("last", [2, 4])
def test_a_signal_saves_where_only_better_checkpoints_are_saved(last, recipe_file, tmp_path, capsys, monkeypatch):
    best = dict(save_strategy="best", eval_strategy="steps", eval_steps=2, metric_for_best_model="loss")
    # At this rate the loss falls, so that step 4 is not better than step 2.
    recipe = str(recipe_file(**best, greater_is_better="true", learning_rate=1e-4))
    signalled(monkeypatch, signal.SIGINT, at_step=last)
    assert main(["train", recipe]) == 130
    assert f"stopped after step {last}, whose checkpoint is saved" in capsys.readouterr().err
    assert (tmp_path / "run" / f"checkpoint-{last}").is_dir()


@pytest.mark.parametrize(
    ("strategy", "evaluations", "at_step"),
    [
        (dict(save_strategy="best", eval_strategy="steps", eval_steps=2, max_steps=6), [2, 4, 6], 4),
        (dict(save_strategy="epoch", eval_strategy="epoch", num_train_epochs=2), [6, 12], 6),
    ],
)
def test_the_evaluation_at_a_signals_step_is_made_and_counts_after_a_resumption(
    strategy, evaluations, at_step, recipe_file, tmp_path, monkeypatch
):
    best = dict(load_best_model_at_end="true", metric_for_best_model="loss", learning_rate=1e-4)
    recipe = str(recipe_file(**best, **({"max_steps": -1} | strategy)))
    assert main(["train", recipe, "--output_dir", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGINT, at_step=at_step)
        assert main(["train", recipe]) == 130
    assert (tmp_path / "run" / f"checkpoint-{at_step}").is_dir()
    assert main(["train", recipe, "--resume_from_checkpoint", "true"]) == 0
    evaluated = []
    for name in ("whole", "run"):
        history = json.loads((tmp_path / name / "log_history.json").read_text())
        evaluated.append({entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry})
    assert list(evaluated[0]) == evaluations and evaluated[0] == evaluated[1]
    assert adapter(tmp_path / "run") == adapter(tmp_path / "whole")


def test_a_run_that_resumed_from_a_named_checkpoint_names_its_last_one_when_it_stops(
    recipe_file, tmp_path, capsys, monkeypatch
):
    recipe = str(recipe_file(save_steps=2, max_steps=6, save_total_limit=5))
    assert main(["train", recipe]) == 0
    signalled(monkeypatch, signal.SIGINT)
    assert main(["train", recipe, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2")]) == 130
    command = f"prompt-tuning train {recipe} --resume_from_checkpoint {tmp_path / 'run' / 'checkpoint-3'}"
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"to resume: {command}")


def test_a_longer_training_that_is_stopped_removes_the_results_of_the_shorter_one(
    recipe_file, tmp_path, capsys, monkeypatch
):
    recipe = recipe_file(output_dir=None)
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"recipe: {recipe}\nruns: {{a: {{max_steps: 2}}}}\n")
    command = ["sweep", str(sweep), "--output_dir", str(tmp_path / "runs")]
    assert main(command) == 0
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGINT)
        longer = ["--output_dir", str(tmp_path / "runs" / "a"), "--max_steps", "6", "--resume_from_checkpoint", "true"]
        assert main(["train", str(recipe), *longer]) == 130
    assert not (tmp_path / "runs" / "a" / "results.json").exists()
    sweep.write_text(f"recipe: {recipe}\nruns: {{a: {{max_steps: 6}}}}\n")
    assert main(command) == 0
    assert json.loads((tmp_path / "runs" / "a" / "results.json").read_text())["train_steps"] == 6


def test_files_of_another_run_are_not_overwritten(recipe_file, tmp_path, capsys, monkeypatch, model_folders):
    recipe = str(recipe_file(save_strategy="no", max_steps=1))
    with monkeypatch.context() as patch:
        patch.setattr("prompt_tuning.runs.train.evaluate_models", raises(KeyboardInterrupt))
        assert main(["train", recipe]) == 130
    before = adapter(tmp_path / "run")
    assert main(["train", recipe]) == 2
    assert "run holds adapter_model.safetensors already; name another --output_dir" in capsys.readouterr().err
    assert main(["train", recipe, "--resume_from_checkpoint", "auto", "--seed", "9"]) == 2
    assert adapter(tmp_path / "run") == before
    assert main(["train", recipe, "--resume_from_checkpoint", "auto"]) == 0  # It is the same training.
    own_model = tmp_path / "own"
    shutil.copytree(model_folders["llama"], own_model)
    full = [f"--{name}={own_model}" for name in ("model_name_or_path", "output_dir")]
    assert main(["train", str(recipe_file(method="full", num_virtual_tokens=None)), *full]) == 2
    assert "own holds model.safetensors already" in capsys.readouterr().err
    recipe = str(recipe_file(save_steps=2, output_dir=tmp_path / "other"))
    assert main(["train", recipe]) == 0
    elsewhere = ["--resume_from_checkpoint", str(tmp_path / "other" / "checkpoint-2")]
    assert main(["train", recipe, *elsewhere, "--output_dir", str(tmp_path / "run")]) == 2
    assert "run holds a finished run already" in capsys.readouterr().err


def raises(error):
    def raised(*args, **kwargs):
        raise error

    return raised


def test_an_interrupted_run_resumes_only_with_its_own_settings(recipe_file, tmp_path, capsys, monkeypatch):
    recipe = recipe_file(output_dir=None)
    (tmp_path / "sweep.yaml").write_text(f"recipe: {recipe}\nruns: {{a: {{}}}}\n")
    commands = [["sweep", str(tmp_path / "sweep.yaml")], ["compare", str(recipe), "--seeds", "42"]]
    for command in commands:
        command += ["--output_dir", str(tmp_path / command[0])]
        with monkeypatch.context() as patch:
            signalled(patch, signal.SIGINT)
            assert main(command) == 130
        capsys.readouterr()
        assert main([*command, "--learning_rate", "0.5"]) == 2
        assert "was run with other settings (learning_rate)" in capsys.readouterr().err
    run = ["train", str(recipe), "--output_dir", str(tmp_path / "sweep" / "a"), "--resume_from_checkpoint", "true"]
    assert main([*run, "--num_virtual_tokens", "9"]) == 2
    assert "checkpoint-3 is of a run with another num_virtual_tokens; name another" in capsys.readouterr().err
    assert main([*run, "--learning_rate", "0.5"]) == 0  # The user asked for it, and a warning reports it.
    assert "is continued with other settings than the run in its folder had: learning_rate" in capsys.readouterr().err


def test_a_checkpoint_without_its_optimiser_is_not_resumed(recipe_file, tmp_path, capsys, monkeypatch):
    recipe = str(recipe_file(save_only_model="true"))
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGINT)
        assert main(["train", recipe]) == 130
    assert main(["train", recipe, "--resume_from_checkpoint", "true"]) == 2
    assert "checkpoint-3: no state of the optimiser, the learning rate's schedule, " in capsys.readouterr().err


def test_a_signal_after_the_last_step_ends_the_command_as_usual(recipe_file, tmp_path, capsys, monkeypatch):
    def interrupted(self, *args, **kwargs):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(KeepOnlyBest, "on_train_end", interrupted)
    settings = ["--load_best_model_at_end", "--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "2"]
    assert main(["train", str(recipe_file()), *settings]) == 130
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_a_signal_that_the_process_ignores_stays_ignored(recipe_file, tmp_path, monkeypatch):
    def interrupted(self, *args):
        signal.raise_signal(signal.SIGINT)
        return step(self, *args)

    step = PromptTuningTrainer.training_step
    monkeypatch.setattr(PromptTuningTrainer, "training_step", interrupted)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert main(["train", str(recipe_file()), "--save_strategy", "no"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("limit", [1, 2])
def test_a_checkpoint_is_never_written_or_removed_file_by_file_under_its_name(
    limit, recipe_file, tmp_path, monkeypatch
):
    steps = dict(save_steps=1, eval_steps=1, eval_strategy="steps", load_best_model_at_end="true")
    recipe = str(recipe_file(**steps, save_total_limit=limit, learning_rate=0, max_eval_samples=2))
    last = tmp_path / "run" / "checkpoint-4"
    rmtree = shutil.rmtree
    seen = []

    def noted(path, *args, **kwargs):
        seen.append(Path(path).name)
        rmtree(path, *args, **kwargs)

    def saved(self, *args, **kwargs):
        save(self, *args, **kwargs)
        assert not last.exists()

    save = PromptTuningTrainer.save_model
    monkeypatch.setattr(PromptTuningTrainer, "save_model", saved)
    monkeypatch.setattr("shutil.rmtree", noted)
    assert main(["train", recipe]) == 0
    kept = [path.name for path in sorted((tmp_path / "run").glob("checkpoint-*"))]
    assert kept == ["checkpoint-1", "checkpoint-4"][:limit]  # No score is better than the first one.
    assert seen and not [name for name in seen if name.startswith("checkpoint-")]


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_resuming_from_the_last_checkpoint_takes_no_step_and_evaluates_nothing(strategy, recipe_file, tmp_path):
    settings = dict(max_steps=4, lr_scheduler_type="constant", eval_strategy=strategy, save_strategy=strategy)
    recipe = str(recipe_file(**settings))  # An epoch has 6 steps.
    run = tmp_path / "run"
    assert main(["train", recipe]) == 0
    before = adapter(run)
    evaluations = count_evaluations(run)
    assert main(["train", recipe, "--resume_from_checkpoint", "true"]) == 0
    assert adapter(run) == before
    assert json.loads((run / "results.json").read_text())["train_steps"] == 4
    assert count_evaluations(run) == evaluations > 0


def count_evaluations(run):
    return sum("eval_loss" in entry for entry in json.loads((run / "log_history.json").read_text()))


def test_a_moved_run_that_resumes_keeps_its_best_checkpoint(recipe_file, tmp_path):
    steps = dict(save_steps=1, eval_steps=1, eval_strategy="steps", load_best_model_at_end="true")
    recipe = str(recipe_file(**steps, save_total_limit=2, learning_rate=0, max_eval_samples=2, max_steps=3))
    assert main(["train", recipe]) == 0  # No score is better than the first one.
    before = adapter(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    words = ["--output_dir", str(tmp_path / "moved"), "--save_total_limit", "1", "--resume_from_checkpoint", "true"]
    assert main(["train", recipe, *words]) == 0
    assert [path.name for path in (tmp_path / "moved").glob("checkpoint-*")] == ["checkpoint-1"]
    assert adapter(tmp_path / "moved") == before


@pytest.mark.parametrize("moment", ["step", "train_end"])
def test_a_resumed_run_has_only_its_remaining_patience(moment, recipe_file, tmp_path, monkeypatch):
    recipe = str(recipe_file(**PATIENT))
    with monkeypatch.context() as patch:
        if moment == "step":
            interrupt_training(patch, step=3)
        else:
            patch.setattr(KeepOnlyBest, "on_train_end", raises(KeyboardInterrupt))
        assert main(["train", recipe]) == 130
    assert main(["train", recipe, "--resume_from_checkpoint", "true"]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["train_steps"] == 4


@pytest.fixture
def poisoned(monkeypatch):
    """Return a function that makes the loss or gradient of batches with row 7 not finite, and returns their rows."""
    compute_loss = PromptTuningTrainer.compute_loss
    seen = []

    def poison(what):
        def compute(self, model, inputs, *args, **kwargs):
            rows = inputs["row"].tolist()
            loss = compute_loss(self, model, inputs, *args, **kwargs)
            if not model.training or 7 not in rows:
                return loss
            seen.append((self.state.global_step + 1, rows))
            zero = 0 * next(parameter for parameter in model.parameters() if parameter.requires_grad).sum()
            return loss * float("inf") if what == "loss" else loss + zero.sqrt()  # The gradient is now 0 / 0.

        monkeypatch.setattr(PromptTuningTrainer, "compute_loss", compute)
        return seen

    return poison


def prompts(run):
    return [load_file(path / "adapter_model.safetensors")["prompt_embeddings"] for path in run.glob("checkpoint-*")]


@pytest.mark.parametrize(
    ("what", "problem", "settings"),
    [
        ("loss", "the loss is inf", {}),
        ("gradient", "the norm of the gradient is nan", {"max_grad_norm": 0.0}),
        ("loss", "the loss is inf", {"streaming": "true", "gradient_accumulation_steps": 2, "save_strategy": "no"}),
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_stops_with_its_step_and_rows_and_is_not_saved(
    what, problem, settings, recipe_file, tmp_path, capsys, poisoned
):
    seen = poisoned(what)
    recipe = str(recipe_file(**({"max_steps": 7, "save_steps": 1, "seed": 3} | settings)))
    assert main(["train", recipe]) == 1
    step, rows = seen[0]
    where = ", ".join(f"{tmp_path / 'train.jsonl'}, line {row + 1}" for row in rows)
    assert f"error: step {step}: {problem}, and nothing was saved of it; its rows: {where}." in capsys.readouterr().err
    run = tmp_path / "run"
    saved = [] if "save_strategy" in settings else [number for number in (step - 2, step - 1) if number > 0]
    assert sorted(file_names(run)) == [
        "base_model.json",
        *(f"checkpoint-{number}" for number in saved),
        "recipe.yaml",
    ]
    assert all(prompt.isfinite().all() for prompt in prompts(run))


def test_a_signal_saves_no_checkpoint_after_a_loss_that_is_not_finite(recipe_file, tmp_path, capsys, monkeypatch):
    compute_loss = PromptTuningTrainer.compute_loss
    monkeypatch.setattr(PromptTuningTrainer, "compute_loss", lambda *args, **kwargs: compute_loss(*args, **kwargs) / 0)
    signalled(monkeypatch, signal.SIGINT, at_step=1)
    assert main(["train", str(recipe_file(logging_steps=50, save_strategy="no"))]) == 1
    assert "error: step 1: the loss is inf" in capsys.readouterr().err
    assert file_names(tmp_path / "run") == {"base_model.json", "recipe.yaml"}


def test_a_step_that_the_scaler_of_float16_skipped_is_ordinary():
    model = torch.nn.Linear(1, 1)
    model(torch.full((1, 1), torch.inf)).sum().backward()
    divergence = Divergence("row {}".format)
    groups = torch.optim.SGD(model.parameters()).param_groups
    optimizer = SimpleNamespace(param_groups=groups, step_was_skipped=True)
    divergence.on_optimizer_step(None, TrainerState(), None, optimizer=optimizer)
    divergence.check()
    optimizer.step_was_skipped = False
    divergence.on_optimizer_step(None, TrainerState(), None, optimizer=optimizer)
    with pytest.raises(TrainingError, match="step 1: the norm of the gradient is inf"):
        divergence.check()


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk with room for some four checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=240k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_the_checkpoints_and_with_room_the_run_resumes(recipe_file, small_disk, capsys, tmp_path):
    recipe = str(recipe_file(max_steps=9, save_steps=1, save_total_limit=20, lr_scheduler_type="constant"))
    assert main(["train", recipe, "--output_dir", str(small_disk / "run")]) == 1
    errors = capsys.readouterr().err
    assert f"error: {small_disk / 'run'}: No space left on device; no partial file was left" in errors
    kept = {path.name for path in (small_disk / "run").glob("checkpoint-*")}
    assert kept == {f"checkpoint-{number}" for number in range(1, len(kept) + 1)} and 2 < len(kept) < 9
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    again = ["--output_dir", str(small_disk / "run"), "--resume_from_checkpoint", "true"]
    assert main(["train", recipe, *again]) == 0
    assert main(["train", recipe, "--output_dir", str(tmp_path / "whole")]) == 0
    assert adapter(small_disk / "run") == adapter(tmp_path / "whole")


@pytest.fixture
def too_small(monkeypatch):
    """Let a device run out of memory in or after its second step, while it trains or while it evaluates."""
    compute_loss = PromptTuningTrainer.compute_loss

    def limit(training):
        def compute(self, model, inputs, *args, **kwargs):
            if model.training == training and self.state.global_step > 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return compute_loss(self, model, inputs, *args, **kwargs)

        monkeypatch.setattr(PromptTuningTrainer, "compute_loss", compute)

    return limit


def test_smaller_batches_by_trainers_own_rule_are_refused(recipe_file, capsys, tokenizer, tmp_path):
    """Refuse them because Trainer takes nine tenths of the rows after each failure, so steps have fewer rows."""
    advice = "Set activation_checkpointing: true, or lower per_device_train_batch_size"
    assert main(["train", str(recipe_file()), "--auto_find_batch_size"]) == 2
    assert advice in capsys.readouterr().err
    args = PromptTuningArguments(str(tmp_path), auto_find_batch_size=True, use_cpu=True)
    with pytest.raises(RecipeError, match=advice):
        PromptTuningTrainer(tiny_llama(len(tokenizer)), args, processing_class=tokenizer)


@pytest.mark.parametrize(
    ("training", "flags", "advice"),
    [
        (True, [], "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.); lower per_device_train_batch"),
        (False, ["--eval_strategy", "steps"], "lower per_device_eval_batch_tokens"),
    ],
)
def test_too_little_memory_is_reported_with_advice(training, flags, advice, recipe_file, tmp_path, capsys, too_small):
    too_small(training)
    settings = ["--per_device_train_batch_size", "2", "--save_steps", "1", "--eval_steps", "1"]
    assert main(["train", str(recipe_file()), *settings, *flags]) == 1
    errors = capsys.readouterr().err
    assert advice in errors and "Traceback" not in errors
    kept = file_names(tmp_path / "run")
    assert kept == {"base_model.json", "recipe.yaml", *(["checkpoint-1"] if training else [])}
