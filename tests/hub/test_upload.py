"""Upload and download runs by the real client over HTTP; the hub is tests/helpers/hub_server.py on loopback.

Xet, by which the client uploads large files to the real hub, is switched off: files go by LFS here.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from helpers import forked
from helpers.cards import check_card
from helpers.hub_server import HubServer
from helpers.paths import ROOT
from helpers.rows import question_rows, write_jsonl
from helpers.trainers import soft_trainer
from huggingface_hub import ModelCard

from prompt_tuning import Predictor
from prompt_tuning.cli.main import main
from prompt_tuning.errors import AdapterError, DataError, HubError
from prompt_tuning.hub.download import adapter_folder, download_adapter
from prompt_tuning.hub.ids import is_hub_id
from prompt_tuning.hub.upload import plan_upload, push
from prompt_tuning.reports.model_card import card_for_hub
from prompt_tuning.runs import push_run
from prompt_tuning.runs.export import export_runs
from prompt_tuning.runs.exported import ExportedTask
from prompt_tuning.runs.requests import Requests

TOKEN = "hf_secretOfAnn"
BASE = "bea/tiny-llama"
NAMES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "base_model.json", "recipe.yaml", "results.json",
    "template.yaml",
}  # fmt: skip


def settings(model, folder, **changes):
    """Return the settings of a recipe, full of absolute paths."""
    common = {
        "model_name_or_path": str(model), "task": "question_answering", "template": "question_answering/plain",
        "num_virtual_tokens": 6, "max_source_tokens": 96, "max_target_tokens": 12, "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 4, "max_steps": 4, "save_steps": 2, "learning_rate": 0.3, "use_cpu": True,
        "disable_tqdm": True,
    }  # fmt: skip
    files = {f"{split}_file": str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    return common | ({} if "dataset_name" in changes else files) | changes


def write_recipe(folder, values):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return path


def write_rows(folder):
    for split, count, shift in (("train", 24, 0), ("validation", 6, 3), ("test", 9, 5)):
        write_jsonl(folder / f"{split}.jsonl", question_rows(count, shift))


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folders):
    """Return a finished run with its checkpoints."""
    folder = tmp_path_factory.mktemp("home of ann")
    write_rows(folder)
    assert main(["train", str(write_recipe(folder, settings(model_folders["llama"], folder)))]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_folders):
    """Return a finished run that trained every weight."""
    folder = tmp_path_factory.mktemp("home of ann")
    write_rows(folder)
    values = settings(model_folders["llama"], folder, method="full", num_virtual_tokens=None)
    assert main(["train", str(write_recipe(folder, values))]) == 0
    return folder / "run"


@pytest.fixture
def hub(model_folders):
    with HubServer({TOKEN: "ann", "hf_ofBea": "bea"}) as hub:
        hub.add(BASE, {path.name: path.read_bytes() for path in model_folders["llama"].iterdir()})
        yield hub


@pytest.fixture
def commands(hub, tmp_path):
    """Return a function that runs commands in a process with an empty cache, and returns what they printed.

    Args of the function:
        commands: The words of each command.
        code: The exit code.
        imports: Import the libraries in a new process, instead of a fork of one that has imported them.
        environment: Variables besides those of this process.
    """

    def run_commands(*commands, code=0, imports=False, **environment):
        variables = {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        words = json.dumps([[str(word) for word in command] for command in commands])
        if imports:
            done = run_python(ROOT / "tests" / "helpers" / "loopback.py", words, **variables | environment)
        else:
            done = forked.run("helpers.loopback", words, folder=Path.cwd(), **variables | environment)
        assert done.returncode == code, done.stderr[-3000:]
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run_commands


def run_python(*words, folder=None, **environment):
    command = [sys.executable, *words]
    variables = os.environ | environment
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)


def pushing(run, *options):
    return ["push", run, "--repo_id", "ann/squad", "--base_model", BASE, *options]


def predictions(file, name="prediction"):
    return [json.loads(line)[name] for line in file.read_text().splitlines()]


def at_hub(hub, monkeypatch, tmp_path, offline=False):
    """Let this process ask the hub too, and use the cache of `commands`."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    download_adapter.cache_clear()


def test_a_pushed_run_is_accepted_wherever_a_folder_is(
    run, whole, hub, commands, model_folders, tmp_path, monkeypatch
):
    urls = commands(pushing(run), ["push", whole, "--repo_id", "ann/whole"], imports=True).stdout.split()
    heads = [hub.repositories["models", name].branches["main"] for name in ("ann/squad", "ann/whole")]
    assert urls == [f"{hub.url}/ann/squad/commit/{heads[0]}", f"{hub.url}/ann/whole/commit/{heads[1]}"]

    write_rows(tmp_path)
    recipe = write_recipe(tmp_path, settings(BASE, tmp_path, save_strategy="no", num_virtual_tokens=None))
    rows = tmp_path / "test.jsonl"
    outputs = [tmp_path / "squad.jsonl", tmp_path / "whole.jsonl"]
    by_id = ["--adapter", "ann/squad"]
    commands(
        ["predict", *by_id, "--input", rows, "--output", outputs[0]],
        ["predict", "--adapter", "ann/whole", "--input", rows, "--output", outputs[1]],
        ["evaluate", recipe, "--adapter", "ann/squad@main", "--output_dir", tmp_path / "evaluated"],
        ["train", recipe, *by_id, "--output_dir", tmp_path / "longer"],
        ["train", recipe, "--init", "adapter", "--init_adapter", "ann/squad", "--output_dir", tmp_path / "spot"],
        ["ensemble", recipe, "--adapters", run, "ann/squad", "--output_dir", tmp_path / "together"],
        ["inspect", "ann/squad", "--output", tmp_path / "inspected"],
    )
    expected = predictions(run / "predictions" / "test.jsonl", "soft_prompt")
    assert predictions(outputs[0]) == expected
    assert predictions(outputs[1]) == predictions(whole / "predictions" / "test.jsonl", "full")
    evaluated = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    assert evaluated["soft_prompt"] == json.loads((run / "results.json").read_text())["soft_prompt"]
    assert evaluated["adapter"] == "ann/squad@main"
    for name in ("longer", "spot"):
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["num_virtual_tokens"] == 6
    assert (tmp_path / "inspected" / "inspection.json").is_file()

    at_hub(hub, monkeypatch, tmp_path, offline=True)
    predictor = Predictor.load("ann/squad", str(model_folders["llama"]))  # The cache has its files.
    assert predictor(question_rows(9, 5)) == expected


def test_a_pushed_export_makes_the_same_requests_and_replaces_an_older_one(run, hub, commands, tmp_path):
    folder = export_runs([f"qa={run}"], tmp_path / "exported")
    (folder / "notes.txt").write_text("of ann")
    (folder / "model-q8_0.gguf").write_bytes(b"GGUF")
    hub.add("ann/served", {"tasks/old/recipe.yaml": b"x", "model-f16.gguf": b"x"})
    push = ["push", folder, "--repo_id", "ann/served", "--base_model", BASE]
    listed, _ = commands([*push, "--dry-run"], push).stdout.split("bytes in")
    files = hub.files("ann/served")
    added = {"prompts.json", "tasks/qa/recipe.yaml", "tasks/qa/template.yaml", "model-q8_0.gguf", "model.safetensors"}
    assert added < files.keys() and not {"notes.txt", "tasks/old/recipe.yaml", "model-f16.gguf"} & files.keys()
    assert all(f"  {name}\n" in listed for name in files)
    texts = [data for name, data in files.items() if not name.endswith((".safetensors", ".gguf"))]
    assert str(tmp_path).encode() not in b"".join(texts) and str(run.parent).encode() not in b"".join(texts)
    assert ModelCard(files["README.md"].decode()).data.base_model == BASE

    for name, data in files.items():
        (tmp_path / "downloaded" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "downloaded" / name).write_bytes(data)
    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, question_rows(3))
    for name in ("exported", "downloaded"):
        task = ExportedTask.load(tmp_path / name, "qa")
        Requests(task, "m").write(str(rows), str(tmp_path / f"{name}.jsonl"))
    assert (tmp_path / "exported.jsonl").read_text() == (tmp_path / "downloaded.jsonl").read_text()


def test_uploaded_files_hold_no_token_no_path_and_no_row_except_the_cards_example(run, hub, commands):
    commands(pushing(run, "--private"))
    files = hub.files("ann/squad")
    assert set(files) == NAMES and hub.repositories["models", "ann/squad"].private
    sent = b"\n".join([*files.values(), *(request.body for request in hub.requests), *hub.objects.values()])
    assert TOKEN.encode() not in sent and b"optimizer" not in sent and b"initial_prompt" not in sent
    text = "\n".join(data.decode() for name, data in files.items() if not name.endswith(".safetensors"))
    assert str(run.parent) not in text and "tmp" not in text and "train_file: train.jsonl" in text
    written = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [row["source"] in text for row in written] == [True] + [False] * 8
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE
    base = json.loads(files["base_model.json"])
    assert base["name"] == BASE and base["folder"] is None and base["weights"] and base["tokenizer"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == BASE and "predict --adapter ann/squad --input rows.jsonl" in card.text
    assert card.text.count("adapter = 'ann/squad'") == 2 and f"AutoTokenizer.from_pretrained('{BASE}')" in card.text
    assert f"for the frozen `{BASE}`" in card.text and card.data.eval_results[0].dataset_name == "test.jsonl"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # The hub's own client uploads so.
def test_a_push_from_python_names_the_repository_in_its_card(run, hub, tmp_path, monkeypatch):
    at_hub(hub, monkeypatch, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'card'"):
        push(run, "ann/squad", base_model=BASE, token=TOKEN)
    push_run(run, "ann/squad", base_model=BASE, token=TOKEN)
    card = hub.files("ann/squad")["README.md"].decode()
    assert card.count("adapter = 'ann/squad'") == 2 and ModelCard(card).data.base_model == BASE
    assert f"'{run.name}'" not in card and "tiny-llama'" not in card.replace(BASE, "")


def test_a_card_that_was_edited_is_uploaded_as_it_is_with_the_base_model_in_its_metadata(run, tmp_path, caplog):
    shutil.copytree(run, tmp_path / "moved")
    moved = tmp_path / "moved" / "README.md"
    card = partial(card_for_hub, moved.parent)
    rendered = card("ann/squad", BASE)
    assert "moved" not in rendered and "adapter = 'ann/squad'" in rendered
    moved.write_bytes(moved.read_bytes().replace(b"## Limits", b"## Limits\n\n- Not for lawyers."))
    edited = ModelCard(plan_upload(moved.parent, "ann/squad", BASE, card=card)["README.md"].decode())
    assert (
        edited.data.base_model == BASE
        and "- Not for lawyers." in edited.text
        and "adapter = 'ann/squad'" not in edited.text
    )
    assert "It is uploaded as it is" in caplog.text


def test_a_dry_run_lists_files_and_asks_no_network(run, hub, commands):
    listed = commands(pushing(run, "--dry-run"), HF_HUB_OFFLINE="1").stdout.splitlines()
    assert {line.split()[-1] for line in listed[:-1]} == NAMES and listed[-1].endswith("bytes in 7 files")
    *sizes, total = [int(line.split()[0].replace(",", "")) for line in listed]
    assert total == sum(sizes)
    assert not hub.asked("ann")


def test_an_adapter_of_another_model_is_replaced_only_with_overwrite(run, hub, commands):
    theirs = {"adapter_config.json": b'{"base_model_name_or_path": "bea/other"}', "notes.txt": b"kept"}
    hub.add("ann/squad", theirs)
    refused = commands(pushing(run), code=1).stderr
    assert "ann/squad: it holds an adapter of bea/other, this one is of bea/tiny-llama" in refused
    assert "or replace it with --overwrite" in refused
    assert hub.files("ann/squad") == theirs
    commands(pushing(run, "--overwrite"))
    assert set(hub.files("ann/squad")) == NAMES | {"notes.txt"}
    commands(pushing(run))  # The base model is the same now.
    hub.add("ann/squad", {"config.json": b"{}"})
    assert "holds a whole model (config.json)" in commands(pushing(run, "--overwrite"), code=1).stderr


def test_replacing_a_whole_model_deletes_its_shards_and_tokenizer(whole, hub, commands):
    theirs = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model", "notes.txt")
    hub.add("ann/whole", {"config.json": b"{}"} | dict.fromkeys(theirs, b"old"))
    commands(["push", whole, "--repo_id", "ann/whole"])
    assert set(theirs) & set(hub.files("ann/whole")) == {"notes.txt"}


def test_paths_in_a_run_become_names_and_a_vocabulary_is_unchanged(run, whole, tmp_path):
    for source, name in ((run, "run"), (whole, "whole")):
        shutil.copytree(source, tmp_path / name)
    recipe = tmp_path / "run" / "recipe.yaml"
    nested = {"deepspeed": {"offload": [{"nvme_path": "/scratch/it's: ann"}]}, "output_dir": "/data"}
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | nested))
    pushed = yaml.safe_load(plan_upload(tmp_path / "run", "ann/squad", BASE)["recipe.yaml"])
    assert pushed["deepspeed"] == {"offload": [{"nvme_path": "it's: ann"}]} and pushed["output_dir"] == "data"
    recipe, words = tmp_path / "whole" / "recipe.yaml", tmp_path / "whole" / "vocab.json"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"output_dir": "/data"}))
    words.write_text('{"data": 2, "/data": 9}')
    assert plan_upload(tmp_path / "whole", "ann/whole")["vocab.json"] == words


def test_a_revision_is_created_and_main_is_unchanged(run, hub, commands):
    hub.add("ann/squad", {"notes.txt": b"kept"})
    commands(pushing(run, "--revision", "second"), pushing(run, "--revision", "second"))
    assert set(hub.files("ann/squad", "second")) == NAMES | {"notes.txt"}
    assert set(hub.files("ann/squad")) == {"notes.txt"}
    assert "ann/squad: it is public already" in commands(pushing(run, "--private"), code=1).stderr


@pytest.mark.parametrize(
    ("environment", "failure", "message"),
    [
        ({"HF_HUB_OFFLINE": "1"}, None, "HF_HUB_OFFLINE is set, so nothing was sent. Unset it"),
        ({"HF_ENDPOINT": "http://localhost:9"}, None, "the connection to http://localhost:9 failed (ConnectError"),
        ({"HF_TOKEN": ""}, None, "needs a login. Log in with `hf auth login`, or set HF_TOKEN"),
        ({"HF_TOKEN": "hf_wrong"}, None, "does not accept the token (HF_TOKEN, or that of `hf auth login`)"),
        ({"HF_TOKEN": "hf_ofBea"}, None, "this token may not write to ann/squad: it belongs to another user"),
        ({"HF_TOKEN": f"{TOKEN}é"}, None, "refuses it: 'ascii' codec can't encode"),
        ({}, ("POST .*/commit/", 403), "this token may not write to ann/squad"),
        ({}, ("POST .*/commit/", 412), "another user changed it at the same time, and nothing was overwritten"),
        ({}, ("POST .*/preupload/", 503), "answers 503, and nothing was changed. Wait, and run the same"),
        ({}, ("POST .*/commit/", 400), "answers 400: asked to fail"),
    ],
)  # fmt: skip
def test_a_refusal_of_the_hub_says_what_to_do(run, hub, commands, environment, failure, message):
    if failure:
        hub.fail(*failure, times=99)
    refused = commands(pushing(run), code=1, **environment).stderr
    assert message in refused and refused.count("error: ") == 1
    assert not any(repository.files() for (_, name), repository in hub.repositories.items() if name == "ann/squad")


@pytest.mark.parametrize("place", ["POST /api/repos/create", "PUT /lfs/", "POST .*/preupload/", "POST .*/commit/"])
def test_an_interrupted_push_changes_nothing_and_can_be_repeated(run, hub, commands, place):
    hub.fail(place, "cut", times=99)
    refused = commands(pushing(run), code=1).stderr
    assert f"the connection to {hub.url} failed" in refused and "Run the same command again" in refused
    assert ("models", "ann/squad") not in hub.repositories or hub.files("ann/squad") == {}
    hub.failures.clear()
    commands(pushing(run))
    assert set(hub.files("ann/squad")) == NAMES and len(hub.asked("POST .*/commit/")) == 1


def test_a_push_whose_answer_is_lost_is_not_committed_twice(run, hub, commands):
    hub.fail("POST .*/commit/", "cut after")
    assert "Run the same command again" in commands(pushing(run), code=1).stderr
    head = hub.repositories["models", "ann/squad"].branches["main"]
    assert set(hub.files("ann/squad")) == NAMES
    assert head in commands(pushing(run)).stdout
    assert hub.repositories["models", "ann/squad"].branches["main"] == head


def test_a_base_model_that_only_this_machine_has_is_refused(run, hub, commands, capsys):
    command = ["push", str(run), "--repo_id", "ann/squad", "--dry-run"]
    assert main(command) == 1
    errors = capsys.readouterr().err
    assert "a folder that only this machine has" in errors and "--base_model" in errors
    missing = commands(["push", run, "--repo_id", "ann/squad", "--base_model", "bea/none"], code=1).stderr
    assert "names the base model bea/none" in missing and ("models", "ann/squad") not in hub.repositories


def test_a_base_model_named_like_a_word_of_the_template_is_renamed_only_as_a_model(
    model_folders, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folders["llama"], "model")
    write_rows(tmp_path)
    Path("own.yaml").write_text(
        "source: 'As a `model`: {{ context }} {{ question }}'\ntarget: '{{ answers.text[0] }}'\n"
    )
    values = settings("model", tmp_path, template="own.yaml", max_source_tokens=120)
    assert main(["train", str(write_recipe(tmp_path, values))]) == 0
    files = plan_upload("run", "ann/squad", BASE, card=partial(card_for_hub, Path("run")))
    assert files["template.yaml"].read_text() == Path("run/template.yaml").read_text()
    results, card = json.loads(files["results.json"]), files["README.md"].decode()
    assert results["model"] == results["base_model"] == BASE and f"for the frozen `{BASE}`" in card
    assert f"model_name_or_path: {BASE}\n" in files["recipe.yaml"].decode() and f"model_name_or_path: {BASE}\n" in card
    assert "model = AutoPeftModelForCausalLM" in card and "As a `model`: " in card and "`model`\n" not in card
    assert f"AutoTokenizer.from_pretrained('{BASE}')" in card
    monkeypatch.chdir(model_folders["llama"])  # There is no folder of that name.
    with pytest.raises(HubError, match="a folder that only this machine has"):
        plan_upload(tmp_path / "run", "ann/squad")
    with pytest.raises(HubError, match="--base_model a/b/c: not a hub id"):
        plan_upload(tmp_path / "run", "ann/squad", "a/b/c")
    (tmp_path / "run" / "results.json").write_text("{")
    with pytest.raises(DataError, match=r"results.json: not JSON"):
        plan_upload(tmp_path / "run", "ann/squad")
    (tmp_path / "run" / "README.md").unlink()
    with pytest.raises(HubError, match=r"no README.md. Write it with `prompt-tuning card "):
        plan_upload(tmp_path / "run", "ann/squad", BASE)


def test_an_unfinished_run_is_refused(run, tmp_path, capsys):
    assert main(["push", str(tmp_path), "--repo_id", "ann/squad"]) == 1
    assert "no adapter_config.json. Name the folder" in capsys.readouterr().err
    assert main(["push", str(run / "checkpoint-2"), "--repo_id", "ann/squad"]) == 1
    assert "no recipe.yaml. Name the folder of a finished" in capsys.readouterr().err
    assert main(["push", str(run), "--repo_id", "a/b/c"]) == 1
    assert "--repo_id a/b/c: not a name that the hub takes. Write NAME or USER/NAME." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "token", "offline", "message"),
    [
        ("ann/none", TOKEN, False, r"ann/none: no such folder \(looked in .*\), and no such repository on http"),
        ("ann/empty@gone", TOKEN, False, "ann/empty on .*: no revision gone"),
        ("ann/empty", TOKEN, False, "no adapter_config.json, so it holds no adapter"),
        ("bea/hidden", TOKEN, False, "bea/hidden: no such folder"),
        ("bea/hidden", "", False, "or it is private. Log in with `hf auth login`, or set HF_TOKEN"),
        ("ann/squad", TOKEN, True, r"not in the cache \(.*\), and HF_HUB_OFFLINE is set"),
        ("ann--x/none", TOKEN, False, "and not a valid hub id. Name a folder or USER/NAME"),
    ],
)
def test_an_id_that_cannot_be_loaded_says_what_is_missing(name, token, offline, message, hub, monkeypatch, tmp_path):
    hub.add("ann/empty", {"notes.txt": b""})
    hub.add("bea/hidden", {}, private=True)
    at_hub(hub, monkeypatch, tmp_path, offline)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AdapterError, match=message):
        adapter_folder(name)


def test_training_on_a_hub_data_set_pushes_only_the_finished_run(hub, commands, tmp_path):
    write_rows(tmp_path)
    rows = {f"{split}.jsonl": (tmp_path / f"{split}.jsonl").read_bytes() for split in ("train", "validation", "test")}
    hub.add("bea/places", rows | {"README.md": b"---\nlicense: cc0-1.0\n---\n"}, kind="datasets")
    hub_settings = {"push_to_hub": True, "hub_model_id": "ann/places", "hub_private_repo": True}
    values = settings(BASE, tmp_path, dataset_name="bea/places", **hub_settings)
    recipe = write_recipe(tmp_path, values)
    output, second, third = tmp_path / "predicted.jsonl", tmp_path / "second", tmp_path / "third"
    hub.fail("POST .*/ann/third/commit/", "cut")
    done = commands(
        ["train", recipe],
        ["predict", "--adapter", "ann/places", "--input", tmp_path / "test.jsonl", "--output", output],
        ["train", recipe, "--output_dir", second, "--hub_model_id", "bea/places"],
        ["train", recipe, "--output_dir", third, "--hub_model_id", "ann/third"],
        code=1,
    )
    assert "exit codes: 0 0 1 1" in done.stderr
    assert f"pushed: {hub.url}/ann/places/commit/" in done.stderr
    files = hub.files("ann/places")
    assert set(files) == NAMES and len(hub.asked("POST .*/ann/places/commit/")) == 1
    assert hub.repositories["models", "ann/places"].private
    card = ModelCard(files["README.md"].decode())
    assert card.data.datasets == ["bea/places"] and card.data.base_model == BASE
    commit = hub.repositories["datasets", "bea/places"].branches["main"]
    (result,) = [result for result in card.data.eval_results if result.metric_type == "f1"]
    assert (result.dataset_type, result.dataset_split, result.dataset_revision) == ("bea/places", "test", commit)
    assert f"Data set `bea/places`, commit `{commit}`." in card.text
    assert not {"push_to_hub", "hub_model_id"} & set(yaml.safe_load(files["recipe.yaml"]))
    assert predictions(output) == predictions(tmp_path / "run" / "predictions" / "test.jsonl", "soft_prompt")
    assert "this token may not write to bea/places" in done.stderr and not second.exists()
    assert f"`prompt-tuning push {third} --repo_id ann/third` pushes it again" in done.stderr
    assert (third / "results.json").is_file() and hub.files("ann/third") == {}


def test_a_lost_connection_names_the_data_set_or_the_base_model(hub, commands, tmp_path):
    write_rows(tmp_path)
    for name in ("broken", "cut"):
        hub.add(f"bea/{name}", {"train.jsonl": b"{}"}, kind="datasets")
    hub.fail("datasets/bea/broken", 500, times=999)
    hub.fail("datasets/bea/cut", "cut", times=999)
    hub.add("bea/half", hub.files(BASE))
    hub.fail("bea/half", "cut", times=999)
    recipe = write_recipe(tmp_path, settings(BASE, tmp_path))
    by_name = ["check", recipe, "--train_file=", "--validation_file=", "--test_file=", "--dataset_name"]
    commands_ = [*by_name, "bea/broken"], [*by_name, "bea/cut"], ["check", recipe, "--model_name_or_path", "bea/half"]
    errors = commands(*commands_, code=1).stderr
    assert "exit codes: 1 1 1" in errors
    assert "dataset bea/broken, split train: " in errors and "dataset bea/cut, split train: " in errors
    assert "model_name_or_path bea/half: not a folder here, and not found on the hub" in errors


def test_no_training_state_of_a_whole_model_is_uploaded(whole):
    names = set(plan_upload(whole, "ann/whole"))
    assert names == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "recipe.yaml", "results.json", "template.yaml", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"push_to_hub": True}, "a folder that nobody else has. Train without it, then run `prompt-tuning push RUN"),
        ({"push_to_hub": True, "model_name_or_path": BASE, "method": "none"}, "nothing to push with method none"),
        ({"push_to_hub": True, "method": "multitask_prompt_tuning"}, "Push each task's folder afterwards: `prompt"),
        ({"push_to_hub": True, "model_name_or_path": BASE, "hub_strategy": "checkpoint"}, "the optimiser's state"),
        ({"hub_token": TOKEN}, "hub_token would be saved in every checkpoint. Log in with `hf auth login`"),
    ],
)
def test_impossible_settings_of_a_push_are_refused_before_training(changes, message, model_folders, tmp_path, capsys):
    write_rows(tmp_path)
    recipe = write_recipe(tmp_path, settings(model_folders["llama"], tmp_path, **changes))
    assert main(["train", str(recipe)]) == 2
    errors = capsys.readouterr().err
    assert message in errors and TOKEN not in errors


# PEFT asks for the base model's configuration when it saves, and huggingface_hub uploads in a deprecated way.
@pytest.mark.filterwarnings("ignore:Could not find a config file in bea/tiny-llama:UserWarning")
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_trainer_without_a_recipe_creates_its_repository_and_pushes_no_checkpoint(
    llama, tokenizer, hub, tmp_path, monkeypatch
):
    at_hub(hub, monkeypatch, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    llama.name_or_path = BASE
    trainer = soft_trainer(llama, tokenizer, tmp_path / "run", save_steps=1, push_to_hub=True)
    trainer.train()
    assert hub.files("ann/run") == {}
    url = trainer.push_to_hub("Done", language=["en"], tags=["qa"], dataset=["rows"])
    assert url.startswith(f"{hub.url}/ann/run/commit/")
    assert set(hub.files("ann/run")) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert len(hub.asked("POST .*/commit/")) == 1
    card = check_card(tmp_path / "run" / "README.md")
    assert card.data.language == ["en"] and card.data.tags[-1] == "qa"


def test_a_downloaded_recipe_cannot_run_the_code_of_a_model(run, hub, commands, tmp_path):
    ran = tmp_path / "ran"
    code = f"from pathlib import Path\nfrom transformers import LlamaConfig as Config\nPath({str(ran)!r}).touch()\n"
    config = json.loads(hub.files(BASE)["config.json"]) | {"auto_map": {"AutoConfig": "code.Config"}}
    files = {"config.json": json.dumps(config).encode(), "code.py": code.encode()}
    hub.add("bea/code", hub.files(BASE) | files)
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name, content in plan_upload(run, "ann/theirs", "bea/code").items():
        content = content if isinstance(content, bytes) else content.read_bytes()
        (folder / name).write_bytes(content.replace(b"trust_remote_code: false", b"trust_remote_code: true"))
    hub.add("ann/theirs", {path.name: path.read_bytes() for path in folder.iterdir()})
    predict = ["predict", "--input", run.parent / "test.jsonl", "--output", tmp_path / "out.jsonl", "--adapter"]
    commands([*predict, "ann/theirs"], [*predict, folder])
    assert not ran.exists()
    commands([*predict, "ann/theirs", "--trust_remote_code"])
    assert ran.exists()


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (403, {"X_Error_Code": "GatedRepo"}, "bea/squad: its owner must allow access. Ask for it at "),
        (403, {}, "this token may not read bea/squad. Log in with one that may"),
        (503, {}, "answers 503, and nothing was changed. Wait"),
        ("cut", {}, "bea/squad: the connection to .* was lost. Run the command again"),
    ],
)
def test_an_adapter_that_cannot_be_read_names_the_reason(status, headers, message, hub, monkeypatch, tmp_path):
    hub.add("bea/squad", {"adapter_config.json": b"{}"})
    hub.fail("bea/squad", status, times=99, **headers)
    at_hub(hub, monkeypatch, tmp_path)
    with pytest.raises(AdapterError, match=message):
        adapter_folder("bea/squad")


def test_hub_ids_are_distinguished_from_paths():
    assert all(map(is_hub_id, ["ann/squad", "ann/squad@v1", "ann/squad@refs/pr/1", "runs/quickstart"]))
    assert not any(map(is_hub_id, ["squad", "/ann/squad", "./squad", "../squad", "a/b/c", "ann/", "ann/squad@"]))


def test_a_space_shows_the_page_of_the_pushed_run(run, hub, commands, tmp_path):
    pytest.importorskip("gradio", reason="the page needs prompt-tuning[try]")
    hub.add("ann/other", {"app.py": b"print()"}, kind="spaces")
    done = commands(pushing(run, "--space"), [*pushing(run, "--space", "ann/other"), "--dry_run"])
    assert "requirements.txt" in done.stdout
    refused = commands(pushing(run, "--space", "ann/other"), code=1)
    assert "ann/other: the Space holds another app. Name another --space" in refused.stderr
    files = hub.repositories["spaces", "ann/squad"].files()
    header = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (header["sdk"], header["app_file"], header["models"]) == ("gradio", "app.py", ["ann/squad"])
    assert b"torch" in files["requirements.txt"] and b"extra" not in files["requirements.txt"]
    for name, content in files.items():
        assert str(run).encode() not in content and TOKEN.encode() not in content, name
        path = tmp_path / "space" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    code = (
        "import gradio, prompt_tuning\n"
        "gradio.Blocks.launch = lambda page, **settings: print(prompt_tuning.__file__, len(page.fns) > 0)\n"
        "exec(open('app.py').read())"
    )
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "0", "PYTHONPATH": ""}
    variables |= {"HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    shown = run_python("-c", code, folder=tmp_path / "space", **variables)
    assert shown.stdout == f"{tmp_path / 'space' / 'prompt_tuning' / '__init__.py'} True\n", shown.stderr[-2000:]
