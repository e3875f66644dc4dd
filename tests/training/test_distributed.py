"""Compare two processes over gloo with one process, with DDP and, as far as a CPU runs them, with FSDP2 and ZeRO."""

import json
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from helpers import forked
from helpers.models import tiny_llama
from helpers.paths import ROOT, file_names
from helpers.rows import question_rows, write_jsonl
from helpers.two_processes import (
    BEST,
    CONTINUED,
    HALF,
    METHODS,
    RECIPE,
    REMAINDERS,
    RESUMED,
    TRAIN_ROWS,
    continue_as,
    fit_accumulated,
    fit_all,
    fit_best,
    predict_without_training,
    remainders,
)
from peft import PeftModel
from safetensors.torch import load_file
from transformers import BloomConfig

from prompt_tuning.cli.main import main
from prompt_tuning.errors import ProcessError, RecipeError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.sharding import check_sharding
from prompt_tuning.training.distributed import explain_lost_process, keep_losses_in_float32

PROMPT = 6 * 32  # A prompt has so many numbers.


def in_two(kind, folder):
    for done in forked.run_in_two("helpers.two_processes", kind, folder):
        assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{kind}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def folder(model_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    for name in ("llama", "t5"):
        (folder / f"tiny-{name}").symlink_to(model_folders[name])
    for split, count, shift in (("train", 20, 0), ("validation", 7, 3), ("test", 9, 5)):
        write_jsonl(folder / f"{split}.jsonl", question_rows(count, shift))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def one(folder):
    outcome = {"methods": fit_all(folder, "one"), "remainders": remainders(folder)}
    outcome["accumulated"] = fit_accumulated(folder, "one", 1)
    outcome["best"] = fit_best(folder, "one")
    outcome["without training"] = predict_without_training(folder, "one prompt tuning/adapter")
    batch = ["--per_device_train_batch_size", "8", "--disable_tqdm", "true"]
    assert main(["train", str(folder / "recipe.yaml"), "--output_dir", str(folder / "one run"), *batch]) == 0
    return outcome


@pytest.fixture(scope="module")
def ddp(folder, one):
    return in_two("ddp", folder)


@pytest.fixture(scope="module")
def fsdp2(folder, one):
    return in_two("fsdp2", folder)


def in_two_by_deepspeed(kind, folder):
    if not find_spec("deepspeed"):
        pytest.skip("needs deepspeed, which the suite does not install")
    return in_two(kind, folder)


@pytest.fixture(scope="module")
def zero2(folder, one):
    return in_two_by_deepspeed("zero2", folder)


@pytest.fixture(scope="module")
def zero3(folder, one):
    return in_two_by_deepspeed("zero3", folder)


def adapter(folder, name):
    return load_file(folder / name / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero2", "zero3"])
def test_two_processes_take_the_steps_of_one(kind, method, one, folder, request):
    processes = request.getfixturevalue(kind)
    expected = one["methods"][method]
    for process in processes:
        assert process["methods"][method]["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert process["methods"][method]["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert process["methods"][method]["texts"] == expected["texts"]
    ours, theirs = adapter(folder, f"{kind} {method}"), adapter(folder, f"one {method}")
    assert ours.keys() == theirs.keys()
    # Half of LoRA's numbers start at 0, where the last digits of a gradient decide about a whole step of AdamW.
    within = 5e-6 if method == "LoRA" else 1e-6
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=within) for name in ours)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero2", "zero3"])
def test_accumulated_steps_of_two_processes_are_those_of_one(kind, one, folder, request):
    for process in request.getfixturevalue(kind):
        assert process["accumulated"]["losses"] == pytest.approx(one["accumulated"]["losses"], abs=1e-5)
    ours, theirs = adapter(folder, f"{kind} accumulated"), adapter(folder, "one accumulated")
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=2e-6) for name in ours)  # Some are above 3.


@pytest.mark.parametrize(
    ("kind", "method", "precision"), [(kind, *run) for kind, runs in HALF.items() for run in runs]
)
def test_half_precision_keeps_losses_and_the_saved_prompt_in_float32(kind, method, precision, one, folder, request):
    outcomes = [process["half precision"][f"{method} {precision}"] for process in request.getfixturevalue(kind)]
    expected = one["methods"][method]
    for outcome in outcomes:
        losses = [*outcome["losses"], outcome["loss"]]
        assert losses == pytest.approx([*expected["losses"], expected["loss"]], abs=0.06)
        assert outcome["losses"] == outcomes[0]["losses"] and len(outcome["texts"]) == len(expected["texts"])
        assert not equal_when_rounded(torch.tensor(losses), precision)
    saved = adapter(folder, f"{kind} {method} {precision}").values()
    assert all(weight.dtype == torch.float32 for weight in saved)
    assert not equal_when_rounded(torch.cat([weight.flatten() for weight in saved]), precision)


def equal_when_rounded(tensor, precision):
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.equal(tensor.to(half).float(), tensor)


def test_every_row_is_evaluated_once_for_any_number_of_rows(ddp, one):
    for process in ddp:
        assert process["remainders"] == one["remainders"]
    assert {rows: outcome["scored"] for rows, outcome in one["remainders"].items()} == {
        str(n): [n] for n in REMAINDERS
    }


def test_only_the_prompt_crosses_the_network(ddp):
    for process in ddp:
        sizes = Counter((operation, size) for operation, size in process["sent"])
        assert sizes.pop(("all_reduce", PROMPT)) == 3  # The gradient is sent once a step.
        assert sizes.pop(("broadcast", PROMPT)) == 1  # The start is sent once.
        # Target counts, losses and lengths are sent too.
        assert sum(size * times for (_, size), times in sizes.items()) < 40


def test_processes_agree_on_the_order_of_rows_when_dropout_draws_different_numbers(ddp):
    together = Counter(ddp[0]["rows with dropout"] + ddp[1]["rows with dropout"])
    assert len(together) == TRAIN_ROWS and set(together.values()) == {2}  # Every row is in two epochs.


def test_processes_stop_together_when_one_has_a_signal_or_a_loss_that_is_not_finite(ddp, folder):
    for process, problem in zip(ddp, ("the norm of the gradient is nan", "the loss is nan"), strict=True):
        signalled, diverged = process["stopped"]
        assert signalled == "SIGTERM: stopped after step 3, whose checkpoint is saved"
        assert diverged.startswith(f"step 2: {problem}, and nothing was saved of it; its rows: row ")
    assert (folder / "stopped by signal" / "checkpoint-3" / "rng_state_1.pth").is_file()


@pytest.mark.parametrize(
    ("kind", "method"), [(kind, method) for kind, methods in RESUMED.items() if kind != "one" for method in methods]
)
def test_a_stopped_run_of_two_processes_resumes_to_the_same_weights(kind, method, folder, request):
    request.getfixturevalue(kind)
    whole, resumed = adapter(folder, f"{kind} {method}"), adapter(folder, f"{kind} resumed {method}")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("kind", CONTINUED)
def test_a_run_of_one_process_resumes_in_two_and_the_reverse(kind, one, folder, request):
    request.getfixturevalue(kind)
    continue_as("one", folder, kind)
    for method in CONTINUED[kind]:
        expected = adapter(folder, f"one {method}")
        within = 5e-6 if method == "LoRA" else 1e-6
        for name in (f"{kind} after one {method}", f"one after {kind} {method}"):
            resumed = adapter(folder, name)
            assert all(torch.allclose(resumed[name], expected[name], rtol=0, atol=within) for name in expected)


@pytest.mark.parametrize("kind", CONTINUED)
def test_a_checkpoint_has_the_files_of_one_process(kind, one, folder, request):
    request.getfixturevalue(kind)
    for method in CONTINUED[kind]:
        files, expected = (file_names(folder / f"{name} {method}" / "checkpoint-4") for name in (kind, "one"))
        assert files == expected - {"rng_state.pth"} | {"rng_state_0.pth", "rng_state_1.pth"}


@pytest.mark.parametrize("method", BEST)
@pytest.mark.parametrize("kind", CONTINUED)
def test_the_best_checkpoint_of_two_processes_is_loaded_at_the_end(kind, method, one, folder, request):
    for process in request.getfixturevalue(kind):
        assert process["best"][method]["loss"] == pytest.approx(one["best"][method]["loss"], abs=1e-5)
    ours = adapter(folder, f"{kind} best {method}")
    best = load_file(folder / f"{kind} best {method}" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(torch.equal(ours[name], best[name]) for name in best)


def test_deepspeed_computes_under_autocast_and_keeps_trained_weights_in_float32():
    plugin = SimpleNamespace(deepspeed_config={"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}})
    settings = dict(distributed_type=DistributedType.DEEPSPEED, is_fsdp2=False, deepspeed_plugin=plugin)
    keep_losses_in_float32(SimpleNamespace(mixed_precision="bf16", **settings))
    autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert plugin.deepspeed_config == {
        "bf16": {"enabled": False}, "zero_optimization": {"stage": 2}, "torch_autocast": autocast,
    }  # fmt: skip


def test_a_lost_process_is_reported_and_other_errors_stay_as_they_are(tmp_path):
    forks = [forked.start("helpers.lost_process", rank, tmp_path / "store") for rank in (0, 1)]
    done, _ = [fork.wait() for fork in forks]
    assert done.stdout.count("another process of this run is gone, or its host cannot be reached (") == 2, done.stderr
    with pytest.raises(ProcessError), explain_lost_process():
        raise torch.distributed.DistNetworkError("connection reset")
    with pytest.raises(RuntimeError, match="shape"), explain_lost_process():
        raise RuntimeError("shape '[2]' is invalid")
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"), explain_lost_process():
        torch.nn.Linear(2, 2)(torch.ones(1, 3))


def test_a_launched_run_writes_and_prints_everything_once(one, folder):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
    # Recipes have no use_cpu, and that of accelerate's configuration does not reach the processes.
    (folder / "launched.yaml").write_text((folder / "recipe.yaml").read_text().replace("use_cpu: true\n", ""))
    recipe = [str(folder / "launched.yaml"), "--output_dir", str(folder / "two run")]
    recipe += ["--per_device_train_batch_size", "4"]
    command = [*launch, "recipes/accelerate/cpu_2.yaml", "-m", "prompt_tuning", "train", *recipe]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    output = done.stdout + done.stderr
    for once in ("train: 20 rows", "training 192 of", "with the soft prompt", "written to", "0/6 ["):
        assert output.count(once) == 1, once
    assert_same_run(folder / "one run", folder / "two run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "cpt", "num_virtual_tokens": None, "init_text": "Answer."}, "method cpt does not run under FSDP"),
        ({"model": "t5"}, "an encoder-decoder (t5) does not run under FSDP"),
        ({"model": "bloom"}, "a prompt of a bloom model does not run under FSDP"),
    ],
)
def test_models_and_methods_that_fsdp_cannot_train_are_refused(
    changes, message, recipe_file, model_folders, tokenizer, tmp_path, monkeypatch, capsys
):
    bloom = tmp_path / "tiny-bloom"
    BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4).save_pretrained(bloom)
    model = {"t5": model_folders["t5"], "bloom": bloom}.get(changes.pop("model", None), model_folders["llama"])
    recipe = recipe_file(model_name_or_path=model, **changes)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert main(["train", str(recipe)]) == 2
    assert message in capsys.readouterr().err


def test_zero3_leaves_no_weight_of_a_layer_in_a_process(zero3):
    for process in zero3:
        assert {outcome["numbers in layers"] for outcome in process["methods"].values()} == {0}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"method": "full", "num_virtual_tokens": None}, "method full"),
        ({"method": "cpt", "num_virtual_tokens": None, "init_text": "Answer."}, "method cpt"),
    ],
)
def test_methods_that_zero3_cannot_train_are_refused(changes, refused, recipe_file):
    recipe = load_recipe(recipe_file(**changes))
    recipe.training.deepspeed_plugin = SimpleNamespace(zero_stage=2, deepspeed_config={})
    check_sharding(recipe)
    recipe.training.deepspeed_plugin.zero_stage = 3
    with pytest.raises(RecipeError, match=f"{refused} does not run under ZeRO-3. Launch it with recipes/accelerate/"):
        check_sharding(recipe)


@pytest.mark.parametrize("kind", ["fsdp2", "zero2", "zero3"])
def test_a_split_model_generates_what_a_whole_one_does(kind, one, request):
    for process in request.getfixturevalue(kind):
        assert process["without training"] == one["without training"]


@pytest.mark.parametrize("kind", ["fsdp2", "zero2", "zero3"])
def test_a_split_model_is_saved_as_one_adapter_that_plain_peft_loads(kind, folder, tokenizer, request):
    request.getfixturevalue(kind)
    assert_same_run(folder / "one run", folder / f"{kind} run")
    for saved in (folder / f"{kind} run", folder / f"{kind} run" / "checkpoint-6"):
        plain = PeftModel.from_pretrained(tiny_llama(len(tokenizer)), saved)
        prompt = load_file(folder / "one run" / "adapter_model.safetensors")["prompt_embeddings"]
        assert torch.allclose(plain.prompt_encoder["default"].embedding.weight, prompt, rtol=0, atol=1e-6)


def assert_same_run(one, other):
    """Check that two runs have the same files, weights, predictions and scores, except in their checkpoints."""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, other)]
    assert names[0] == names[1]  # This excludes half-written files.
    assert (one / "predictions/test.jsonl").read_text() == (other / "predictions/test.jsonl").read_text()
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    for result in results:
        for measured in ("train_seconds", "seconds_per_step", "added_memory_bytes", "evaluation_seconds"):
            del result[measured]
        del result["prediction_seconds"]
        result.pop("processes", None)
    assert results[0] == results[1]
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (one, other)]
    assert all(torch.allclose(weights[0][name], weights[1][name], rtol=0, atol=1e-6) for name in weights[0])


@pytest.mark.parametrize("disks", [("one", "one"), ("one", "two")])
def test_machines_with_one_disk_or_two_keep_every_checkpoint_whole(disks, tmp_path):
    outcomes = forked.run_in_two("helpers.shared_disk", *(tmp_path / disk for disk in disks), hosts=2)
    assert [done.returncode for done in outcomes] == [0, 0], outcomes[0].stderr + outcomes[1].stderr
    files = {"0.txt", "1.txt"} if disks == ("one", "one") else None
    for rank, disk in enumerate(disks):
        checkpoints = {path.name: file_names(path) for path in (tmp_path / disk).iterdir()}
        assert checkpoints == {f"checkpoint-{number}": files or {f"{rank}.txt"} for number in range(4)}
