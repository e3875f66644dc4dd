"""Resume with other settings: each one is applied from the checkpoint on and recorded, or refused."""

import json
import os
import shutil
import warnings
import zipfile
from types import SimpleNamespace

import pytest
import torch
from helpers.models import forbid_model_loading
from helpers.trainers import prompt_of, soft, trainer
from torch.distributed.checkpoint import save
from transformers import TrainerCallback

from prompt_tuning.cli.main import main
from prompt_tuning.errors import RecipeError
from prompt_tuning.training.resuming import report_missing_states
from prompt_tuning.training.whole_checkpoints import newest_whole_checkpoint

SAVED = dict(max_steps=4, save_steps=2, save_total_limit=5, learning_rate=3e-2)


class Settings(TrainerCallback):
    """Record, at the end of each step, what the optimiser and the schedule train with."""

    def __init__(self):
        self.rates = {}
        self.groups = []
        self.events = {"log": [], "evaluate": [], "save": []}

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        self.rates[state.global_step + 1] = [group["lr"] for group in optimizer.param_groups]
        self.groups = [
            {k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups
        ]

    def on_log(self, args, state, control, logs, **kwargs):
        if "learning_rate" in logs:
            self.events["log"].append((state.global_step, logs["learning_rate"]))

    def on_evaluate(self, args, state, control, **kwargs):
        self.events["evaluate"].append(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        self.events["save"].append(state.global_step)


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    """Return the checkpoint of step 2 of a run of four steps."""
    folder = tmp_path_factory.mktemp("first")
    trainer(soft("llama", tokenizer), tokenizer, folder, **SAVED).train()
    return folder / "checkpoint-2"


def recorded(tokenizer, folder, checkpoint=None, **settings):
    record = Settings()
    run = trainer(soft("llama", tokenizer), tokenizer, folder, callbacks=[record], **(SAVED | settings))
    run.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return record, run


@pytest.mark.parametrize(
    "settings",
    [
        dict(learning_rate=1e-4),
        dict(learning_rate=1e-4, lr_scheduler_type="polynomial"),
        dict(weight_decay=0.1),
        dict(adam_beta1=0.5, adam_beta2=0.9),
        dict(adam_epsilon=1e-3),
        dict(lr_scheduler_type="linear"),
        dict(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 1e-3}),
        dict(warmup_steps=3),
        dict(max_steps=8),
        dict(max_steps=-1, num_train_epochs=2),
        dict(logging_steps=2),
        dict(eval_strategy="steps", eval_steps=1),
        dict(save_steps=1),
        dict(max_grad_norm=0.0),
        dict(gradient_accumulation_steps=2, per_device_train_batch_size=2),
    ],
    ids=lambda settings: ",".join(settings),
)
def test_a_resumed_run_takes_its_steps_with_the_settings_of_an_uninterrupted_one(
    settings, checkpoint, tokenizer, tmp_path
):
    resumed, run = recorded(tokenizer, tmp_path / "resumed", checkpoint, **settings)
    whole, other = recorded(tokenizer, tmp_path / "whole", **settings)
    assert resumed.rates == {step: rates for step, rates in whole.rates.items() if step > 2}
    assert resumed.groups == whole.groups
    for name, steps in whole.events.items():
        assert resumed.events[name] == [step for step in steps if (step[0] if name == "log" else step) > 2]
    assert run.state.max_steps == other.state.max_steps and run.state.global_step == other.state.global_step


def test_settings_of_an_optimiser_by_name_are_applied(tokenizer, tmp_path):
    descent = dict(optim="sgd", optim_args="momentum=0.9")
    recorded(tokenizer, tmp_path / "first", **descent)
    record, _ = recorded(
        tokenizer, tmp_path / "run", tmp_path / "first" / "checkpoint-2", optim="sgd", optim_args="momentum=0.5"
    )
    assert [group["momentum"] for group in record.groups] == [0.5, 0.5]


def test_a_resumed_run_with_the_same_settings_is_unchanged(checkpoint, tokenizer, tmp_path):
    _, resumed = recorded(tokenizer, tmp_path / "resumed", checkpoint)
    _, whole = recorded(tokenizer, tmp_path / "whole")
    assert torch.equal(prompt_of(resumed.model), prompt_of(whole.model))
    assert resumed.state.log_history[:4] == whole.state.log_history[:4]


def test_an_optimiser_of_another_kind_is_refused(checkpoint, tokenizer, tmp_path):
    for optim in ("sgd", "adafactor", "rmsprop"):
        with pytest.raises(RecipeError, match=f"optim {optim}: the checkpoint is of an optimiser of another kind"):
            recorded(tokenizer, tmp_path, checkpoint, optim=optim)


def test_batches_that_make_other_steps_of_an_epoch_are_refused_unless_a_new_pass_is_asked_for(
    checkpoint, tokenizer, tmp_path
):
    with pytest.raises(RecipeError, match="an epoch had 6 steps, and these rows and batches make 3"):
        recorded(tokenizer, tmp_path, checkpoint, per_device_train_batch_size=8)
    _, run = recorded(tokenizer, tmp_path, checkpoint, per_device_train_batch_size=8, ignore_data_skip=True)
    assert run.state.global_step == 4


def test_a_score_of_another_metric_is_not_compared(tokenizer, tmp_path):
    best = dict(eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, learning_rate=1e-3)
    recorded(tokenizer, tmp_path / "first", metric_for_best_model="loss", greater_is_better=True, **best)
    first = tmp_path / "first" / "checkpoint-2"
    assert json.loads((first / "trainer_state.json").read_text())["best_metric"] > 1
    _, run = recorded(tokenizer, tmp_path / "run", first, metric_for_best_model="f1", greater_is_better=True, **best)
    assert run.state.best_metric == run.state.log_history[-2]["eval_f1"]
    assert run.state.best_global_step == 4


@pytest.mark.parametrize(
    ("file", "name"),
    [("scheduler.pt", "the learning rate's schedule"), ("rng_state.pth", "the random numbers"),
     ("optimizer.pt", "the optimiser")],
)  # fmt: skip
def test_a_checkpoint_without_a_state_is_refused(file, name, checkpoint, tokenizer, tmp_path):
    copy = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)
    (copy / file).unlink()
    with pytest.raises(RecipeError, match=f"checkpoint-2: no state of {name} there"):
        recorded(tokenizer, tmp_path, copy)


def test_a_checkpoint_of_deepspeed_is_refused_since_reading_it_could_run_code(checkpoint, tokenizer, tmp_path):
    copy = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)
    (copy / "global_step2").mkdir()
    with pytest.raises(RecipeError, match="checkpoint-2: it is of DeepSpeed, which would run code"):
        recorded(tokenizer, tmp_path, copy)


def test_a_checkpoint_of_fsdp_is_refused_without_it(checkpoint, tokenizer, tmp_path):
    copy = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)
    torch.save({}, copy / "pytorch_model_fsdp.bin")
    with pytest.raises(
        RecipeError, match=r"checkpoint-2: its state does not fit .* only supported when using PyTorch"
    ):
        recorded(tokenizer, tmp_path, copy)


DAMAGES = {
    "removed": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "one byte less": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "other bytes": lambda file: file.write_bytes(file.read_bytes()[:40] + b"\xff" * 99 + file.read_bytes()[139:]),
}


def test_a_damaged_file_of_the_last_checkpoint_is_named_and_the_one_before_is_taken(tokenizer, tmp_path, caplog):
    """Damage each file in each way: the checkpoint is left out, or nothing of the file is read."""
    _, whole = recorded(tokenizer, tmp_path / "run", max_steps=6)
    last = tmp_path / "run" / "checkpoint-4"
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    shutil.copytree(last, tmp_path / "kept")
    unread = set()
    outcomes = {"the one before": 0, "the last": 0}
    for file in sorted(path.name for path in last.iterdir()):
        for damage in DAMAGES.values():
            damage(last / file)
            caplog.clear()
            if newest_whole_checkpoint(last.parent, needs_best=False) == last:
                outcomes["the last"] += 1
                unread.add(file)
            else:
                assert f"{last}: {file} is damaged (" in caplog.text or f"{last}: no " in caplog.text
                assert "The training resumes from checkpoint-2, which is whole." in caplog.text
                outcomes["the one before"] += 1
            shutil.copyfile(tmp_path / "kept" / file, last / file)
    print(outcomes)
    assert outcomes["the one before"] > 40
    for file in unread:
        (last / file).unlink()
    assert torch.equal(prompt_of(resumed(tokenizer, last.parent).model), prompt_of(whole.model))
    shutil.rmtree(last.parent / "checkpoint-6")
    (last / "scheduler.pt").unlink()
    assert torch.equal(prompt_of(resumed(tokenizer, last.parent).model), prompt_of(whole.model))
    assert "checkpoint-4: no state of the learning rate's schedule there. The training resumes from" in caplog.text


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("trainer_state.json", {"unknown_field": 3}, "trainer_state.json has unknown_field, which this version of"),
        ("trainer_state.json", {"global_step": "four"}, "global_step is the text 'four', expected a whole number"),
        ("trainer_state.json", {"epoch": [1]}, "epoch is a list, expected a number or null"),
        ("trainer_state.json", {"log_history": {}}, "log_history is an object, expected a list"),
        ("trainer_state.json", {"best_metric": "high"}, "best_metric is the text 'high', expected a number or null"),
        ("trainer_state.json", {"stateful_callbacks": True}, "stateful_callbacks is true, expected an object"),
        ("trainer_state.json", {"stateful_callbacks": None}, "stateful_callbacks is null, expected an object"),
        ("trainer_state.json", {"stateful_callbacks": {}}, "stateful_callbacks.TrainerControl is missing"),
        (
            "trainer_state.json",
            {"stateful_callbacks": {"TrainerControl": {}, "EarlyStopping": {"attributes": []}}},
            "EarlyStopping.attributes is a list, expected an object",
        ),
        ("trainer_state.json", {"best_global_step": "../../x"}, "best_global_step is no step"),
        ("model.safetensors.index.json", {}, "weight_map is missing"),
        ("model.safetensors.index.json", {"weight_map": {"a": 1}}, "weight_map.a is 1, expected a text"),
    ],
)
def test_json_of_another_form_in_the_last_checkpoint_is_named_and_the_one_before_is_taken(
    name, value, problem, checkpoint, tmp_path, caplog
):
    for step in (1, 2):
        shutil.copytree(checkpoint, tmp_path / f"checkpoint-{step}")
    file = tmp_path / "checkpoint-2" / name
    saved = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(saved | value), encoding="utf-8")
    assert newest_whole_checkpoint(tmp_path, needs_best=False) == tmp_path / "checkpoint-1"
    assert problem in caplog.text


BROKEN = {
    "a link": (lambda folder: relink(folder), "it is a link to /"),
    "a process": (lambda folder: (folder / "rng_state_0.pth").unlink(), "no rng_state_0.pth there"),
    "another number": (
        lambda folder: (folder / "rng_state_1.pth").rename(folder / "rng_state_x.pth"),
        "no rng_state_1.pth there",
    ),
    "scaler": (lambda folder: (folder / "scaler.pt").unlink(), "no scaler.pt there"),
    "metadata": (lambda folder: (folder / "optimizer_0/.metadata").unlink(), "no optimizer_0/.metadata there"),
    "much metadata": (
        lambda folder: os.truncate(folder / "optimizer_0/.metadata", 51_000_000),
        "optimizer_0/.metadata is damaged (larger than 50,000,000 bytes)",
    ),
    "shard": (
        lambda folder: (folder / "pytorch_model_fsdp_0/__0_0.distcp").unlink(),
        "no pytorch_model_fsdp_0/__0_0.d",
    ),
    "half a shard": (lambda folder: halve(folder / "optimizer_0/__0_0.distcp"), "optimizer_0/__0_0.distcp is damaged"),
    "a pipe": (lambda folder: os.mkfifo(folder / "more.json"), "more.json is damaged (it is not a file)"),
    "a bomb": (lambda folder: compress(folder / "scheduler.pt"), "scheduler.pt is damaged (it is compressed)"),
}


def relink(folder):
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to("elsewhere")


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def compress(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))


@pytest.fixture(scope="module")
def sharded(checkpoint, tmp_path_factory):
    """Return a run with two checkpoints as FSDP writes them in float16 on two processes."""
    run = tmp_path_factory.mktemp("sharded")
    for step in (2, 4):
        folder = run / f"checkpoint-{step}"
        shutil.copytree(checkpoint, folder)
        for name in ("adapter_model.safetensors", "optimizer.pt"):
            (folder / name).unlink()
        for process in range(2):
            shutil.copyfile(folder / "rng_state.pth", folder / f"rng_state_{process}.pth")
        (folder / "rng_state.pth").unlink()
        torch.save({}, folder / "scaler.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # There is only one process here.
            for name in ("pytorch_model_fsdp_0", "optimizer_0"):
                save({"weight": torch.zeros(8)}, checkpoint_id=str(folder / name), no_dist=True)
    return run


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_of_several_processes_is_named_and_the_one_before_is_taken(
    name, sharded, tmp_path, caplog
):
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    needs = {"needs_best": False, "needs_scaler": True}
    assert newest_whole_checkpoint(run, **needs) == run / "checkpoint-4" and not caplog.text
    damage, problem = BROKEN[name]
    damage(run / "checkpoint-4")
    assert newest_whole_checkpoint(run, **needs) == run / "checkpoint-2"
    assert f"{run / 'checkpoint-4'}: {problem}" in caplog.text


def test_states_that_a_checkpoint_of_other_settings_lacks_are_reported(checkpoint, sharded, caplog):
    report_missing_states(checkpoint, SimpleNamespace(world_size=1, fp16=False))
    report_missing_states(sharded / "checkpoint-2", SimpleNamespace(world_size=2, fp16=True))
    assert not caplog.text
    report_missing_states(checkpoint, SimpleNamespace(world_size=1, fp16=True))
    report_missing_states(sharded / "checkpoint-2", SimpleNamespace(world_size=3, fp16=False))
    assert "checkpoint-2: it has no scaler.pt, so that the scale of the loss starts anew" in caplog.text
    assert "checkpoint-2: it has no rng_state_2.pth, so that its process draws other random numbers" in caplog.text


def resumed(tokenizer, run):
    training = trainer(soft("llama", tokenizer), tokenizer, run, **(SAVED | dict(max_steps=6)))
    training.train(resume_from_checkpoint=True)
    return training


def test_a_broken_checkpoint_that_is_named_is_refused_with_the_newest_whole_one(
    checkpoint, tokenizer, tmp_path, recipe_file, capsys, monkeypatch
):
    recipe = str(recipe_file(save_steps=2))
    assert main(["train", recipe, "--save_total_limit", "5", "--max_steps", "6"]) == 0
    run = tmp_path / "run"
    (run / "checkpoint-4" / "trainer_state.json").unlink()
    (run / "checkpoint-6" / "optimizer.pt").write_bytes(b"PK")
    forbid_model_loading(monkeypatch)
    for number, problem in {
        4: "no state of Trainer there",
        6: "optimizer.pt is damaged (File is not a zip file)",
    }.items():
        named = run / f"checkpoint-{number}"
        assert main(["train", recipe, "--max_steps", "6", "--resume_from_checkpoint", str(named)]) == 2
        expected = f"error: {named}: {problem}. Name {run / 'checkpoint-2'}, the newest whole checkpoint."
        assert expected in capsys.readouterr().err
    (run / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"")
    for setting in ("true", "auto"):
        assert main(["train", recipe, "--max_steps", "6", "--resume_from_checkpoint", setting]) == 2
        errors = capsys.readouterr().err
        assert errors.count("No checkpoint of this run is whole. Name another --output_dir, or remove") == 3
    assert (run / "results.json").is_file()


def test_a_checkpoint_whose_best_one_is_broken_is_not_resumed_to_load_it(tokenizer, tmp_path, caplog):
    best = dict(eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True, save_total_limit=9)
    best |= dict(metric_for_best_model="loss", greater_is_better=True, learning_rate=1e-3)  # The first step is best.
    recorded(tokenizer, tmp_path, **best)
    (tmp_path / "checkpoint-1" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(RecipeError, match="checkpoint-4: its best checkpoint checkpoint-1: adapter_model"):
        recorded(tokenizer, tmp_path, tmp_path / "checkpoint-4", **best)


@pytest.fixture
def stopped(recipe_file, tmp_path):
    recipe = str(recipe_file(save_steps=2, metric_for_best_model="loss"))
    assert main(["train", recipe]) == 0
    return ["train", recipe, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2")]


def test_a_command_refuses_settings_that_do_not_fit_the_checkpoints_state_before_the_model_loads(
    stopped, capsys, monkeypatch
):
    forbid_model_loading(monkeypatch)
    for name, value in {
        "optim": "sgd", "optim_args": "momentum=0.9", "seed": "7", "train_sampling_strategy": "random",
        "lr_scheduler_type": "reduce_lr_on_plateau", "dataloader_drop_last": "true", "group_shared": "2",
        "metric_for_best_model": "f1", "num_virtual_tokens": "9",
    }.items():  # fmt: skip
        assert main([*stopped, f"--{name}", value, "--eval_strategy", "epoch", "--greater_is_better", "false"]) == 2
        assert f"checkpoint-2 is of a run with another {name}" in capsys.readouterr().err
    assert main([*stopped, "--per_device_train_batch_size", "8"]) == 2
    assert "an epoch had 6 steps, and these rows and batches make 3" in capsys.readouterr().err


def test_a_stream_is_resumed_only_with_its_own_batches_and_a_scored_schedule_with_its_rate(
    recipe_file, tmp_path, capsys, monkeypatch
):
    settings = dict(streaming="true", buffer_size=4, save_steps=2)
    plateau = dict(lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps", eval_steps=2, warmup_steps=0)
    recipe = str(recipe_file(**settings, **plateau))
    assert main(["train", recipe]) == 0
    forbid_model_loading(monkeypatch)
    resume = ["train", recipe, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2")]
    for name, value in {
        "per_device_train_batch_size": "8", "gradient_accumulation_steps": "2", "buffer_size": "9",
        "learning_rate": "0.1", "lr_scheduler_type": "linear",
    }.items():  # fmt: skip
        assert main([*resume, f"--{name}", value]) == 2
        assert f"checkpoint-2 is of a run with another {name}" in capsys.readouterr().err


def test_settings_that_changed_are_in_results_and_card_also_after_a_second_resumption(stopped, tmp_path):
    run = tmp_path / "run"
    assert main([*stopped, "--learning_rate", "1e-4", "--weight_decay", "0.1", "--save_steps", "1"]) == 0
    last = [*stopped[:3], str(run / "checkpoint-3"), "--learning_rate", "1e-4", "--weight_decay", "0.1"]
    assert main([*last, "--save_steps", "1"]) == 0
    changed = json.loads((run / "results.json").read_text())["changed_settings"]
    assert changed == {"2": {"learning_rate": [0.03, 1e-4], "save_steps": [2, 1], "weight_decay": [None, 0.1]}}
    card = (run / "README.md").read_text()
    assert "From step 2 on it was trained with other settings: `learning_rate` 0.0001 (0.03 before)" in card


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("optimizer.pt", lambda saved: saved | {"param_groups": []}),
        ("optimizer.pt", lambda saved: saved | {"state": {0: saved["state"][0] | {"exp_avg": torch.zeros(3)}}}),
        ("optimizer.pt", lambda saved: saved | {"state": {0: saved["state"][0] | {"step": torch.zeros(2)}}}),
        ("scheduler.pt", lambda saved: [1, "x"]),
        ("scheduler.pt", lambda saved: saved | {"last_epoch": "x"}),
        ("rng_state.pth", lambda saved: {}),
        ("order.pt", lambda saved: torch.zeros(0)),
    ],
)
def test_a_whole_file_of_a_state_that_holds_something_else_is_an_error_of_its_checkpoint(
    file, change, checkpoint, tokenizer, tmp_path
):
    copy = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    saved = torch.load(copy / file, weights_only=False) if (copy / file).exists() else None
    torch.save(change(saved), copy / file)
    with pytest.raises(RecipeError, match="checkpoint-2: its state does not fit this training"):
        recorded(tokenizer, tmp_path, copy)


def test_an_error_that_is_not_of_the_saved_state_stays_what_it_is(checkpoint, tokenizer, tmp_path):
    class Failing(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            raise ValueError("a bug")

    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, callbacks=[Failing()], **SAVED)
    with pytest.raises(ValueError, match="a bug"):
        run.train(resume_from_checkpoint=str(checkpoint))
