"""Files of a stranger run no code, and their paths lead nowhere: recipes, sweeps, runs, models and metrics."""

import contextlib
import json
import shutil
import sys

import pytest
import torch
import yaml
from helpers.models import forbid_model_loading
from helpers.rows import question_rows, write_jsonl

from prompt_tuning import Predictor
from prompt_tuning.cli.main import main
from prompt_tuning.errors import DataError
from prompt_tuning.hub.upload import plan_upload
from prompt_tuning.models import gguf
from prompt_tuning.support.text import printable

FLAG = "--trust_remote_code"


@pytest.fixture(scope="module")
def trained(model_folders, tmp_path_factory):
    """Train one run, and return a folder with it and its rows."""
    place = tmp_path_factory.mktemp("stranger")
    for split, count in (("train", 8), ("test", 3)):
        write_jsonl(place / f"{split}.jsonl", question_rows(count))
    settings = {
        "model_name_or_path": str(model_folders["llama"]), "task": "question_answering", "max_steps": 1,
        "train_file": str(place / "train.jsonl"), "test_file": str(place / "test.jsonl"), "num_virtual_tokens": 4,
        "template": "question_answering/plain", "max_source_tokens": 96, "max_target_tokens": 4, "use_cpu": True,
        "output_dir": str(place / "run"), "disable_tqdm": True,
    }  # fmt: skip
    (place / "recipe.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", str(place / "recipe.yaml")]) == 0
    return place


@pytest.fixture
def place(trained, tmp_path):
    """Return a copy of the trained folder, which a test may change."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def change_recipe(path, **changes):
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return path


def add_code(folder, ran):
    """Put code into a model's folder wherever transformers looks for it. It makes the file `ran`."""
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nimport transformers\n"
    # transformers marks the classes, so that they must not be its own.
    classes = {"C": "LlamaConfig", "M": "LlamaForCausalLM", "T": "PreTrainedTokenizerFast"}
    defined = [f"class {name}(transformers.{base}): pass\n" for name, base in classes.items()]
    (folder / "code.py").write_text(code + "".join(defined) + "M.config_class = C\n")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code + "def generate(**kwargs): pass\n")
    auto_map = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": [None, "code.T"]}
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        added = {"auto_map": auto_map, "custom_generate": "custom_generate/generate.py"}
        (folder / name).write_text(json.dumps(values | added))


@pytest.fixture
def model(model_folders, tmp_path):
    """Return a copy of a model's folder that makes the file `ran` beside it if its code runs."""
    shutil.copytree(model_folders["llama"], tmp_path / "tiny-llama")
    add_code(tmp_path / "tiny-llama", tmp_path / "ran")
    return tmp_path / "tiny-llama"


def row_file(place):
    (place / "row.json").write_text(json.dumps(question_rows(1)[0]))
    return str(place / "row.json")


@pytest.mark.parametrize("command", ["predict", "card", "inspect"])
def test_only_the_command_line_runs_the_code_of_the_model_that_a_run_names(command, place, model):
    run = place / "run"
    change_recipe(run / "recipe.yaml", trust_remote_code=True, model_name_or_path=str(model))
    (run / "base_model.json").unlink()
    config = json.loads((run / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(model)}
    (run / "adapter_config.json").write_text(json.dumps(config))
    row = row_file(place)
    words = {
        "predict": ["predict", "--adapter", run, "--input", row, "--output", place / "out.jsonl"],
        "card": ["card", run, "--example", row],
        "inspect": ["inspect", run],
    }[command]
    assert main([*map(str, words)]) == 0
    assert not (place / "ran").exists()
    main([*map(str, words), FLAG])  # The stranger's generate returns nothing.
    assert (place / "ran").exists()


def test_only_the_caller_runs_the_code_of_a_run_that_is_a_model(place, model, capsys):
    run = place / "run"
    shutil.copytree(model, run, dirs_exist_ok=True)
    (run / "adapter_config.json").unlink()
    change_recipe(run / "recipe.yaml", trust_remote_code=True, method="full")
    assert Predictor.load(run)(question_rows(1)) and not (place / "ran").exists()
    assert Predictor.load(run, trust_remote_code=True).model and (place / "ran").exists()
    (place / "ran").unlink()
    config = json.loads((run / "config.json").read_text()) | {"model_type": "theirs"}
    (run / "config.json").write_text(json.dumps(config))
    assert main(["predict", "--adapter", str(run), "--input", str(place / "test.jsonl")]) == 1
    assert "it needs Python code that is among its files. Read the code first. Then" in capsys.readouterr().err
    assert not (place / "ran").exists()


@pytest.mark.parametrize("command", ["check", "train", "render", "evaluate", "rank"])
def test_a_recipe_asks_for_trust_and_only_the_command_line_gives_it(command, place, model, capsys, monkeypatch):
    recipe = change_recipe(place / "recipe.yaml", trust_remote_code=True, model_name_or_path=str(model))
    assert main([command, str(recipe)]) == 2
    error = capsys.readouterr().err
    assert "recipe.yaml, line" in error and "trust_remote_code: the recipe asks to run Python code" in error
    assert "Then --trust_remote_code on the command line runs it." in error and not (place / "ran").exists()
    assert main(["check", str(recipe), FLAG, "false"]) == 0
    assert not (place / "ran").exists()
    assert main(["check", str(recipe), FLAG]) == 0
    assert (place / "ran").exists()


def test_kernels_that_a_model_names_are_code(place, model_folders, capsys):
    shutil.copytree(model_folders["llama"], place / "kernels")
    config = json.loads((place / "kernels" / "config.json").read_text()) | {"attn_implementation": "ann/kernels"}
    (place / "kernels" / "config.json").write_text(json.dumps(config))
    recipe = change_recipe(place / "recipe.yaml", model_name_or_path=str(place / "kernels"))
    assert main(["check", str(recipe)]) == 1
    assert "its config.json asks for the attention kernels ann/kernels, which are code" in capsys.readouterr().err
    assert main(["check", str(recipe), FLAG]) == 0


METRIC = """
from pathlib import Path
Path({ran!r}).touch()
import datasets
import evaluate

class Length(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({{"predictions": text, "references": text}})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {{"length": 1.0}}
"""


@pytest.fixture
def metric(tmp_path):
    """Return the folder of a metric that makes the file `ran` if it is imported."""
    script = tmp_path / "folder" / "m" / "m.py"
    script.parent.mkdir(parents=True)
    script.write_text(METRIC.format(ran=str(tmp_path / "ran")))
    return script.parent


@pytest.mark.parametrize("command", ["check", "train", "render", "evaluate", "rank", "compare"])
def test_a_metric_of_a_recipe_runs_only_with_the_flag(command, place, metric, capsys, monkeypatch):
    forbid_model_loading(monkeypatch)
    recipe = change_recipe(place / "recipe.yaml", metrics=["squad", str(metric)], output_dir=str(place / "new"))
    assert main([command, str(recipe)]) == 2
    assert f"metric {str(metric)!r}: it is Python code that is not part" in capsys.readouterr().err
    assert not (place / "ran").exists()
    assert main(["check", str(recipe), FLAG]) == 0 and (place / "ran").exists()


def test_the_report_of_a_run_asks_for_no_code_that_it_does_not_need(place, metric, capsys):
    run, theirs = place / "run", str(metric)
    change_recipe(run / "recipe.yaml", metrics=[theirs, "squad"])
    assert main(["report", str(run)]) == 0 and main(["card", str(run)]) == 0 and main(["show", str(run)]) == 0
    assert not (place / "ran").exists()
    change_recipe(run / "recipe.yaml", metrics=[theirs])
    results = json.loads((run / "results.json").read_text())
    for name in ("soft_prompt", "hard_prompt"):
        results[name] = {"length": 1.0}
    (run / "results.json").write_text(json.dumps(results))
    assert main(["report", str(run)]) == 2 and not (place / "ran").exists()
    assert f"metric {theirs!r}: it is Python code" in capsys.readouterr().err
    assert main(["report", str(run), FLAG]) == 0 and (place / "ran").exists()


@pytest.mark.parametrize(
    "setting", ["trust_remote_code: true", "trust-remote-code: [true]", "truncate: [--trust_remote_code]"]
)
def test_a_sweep_cannot_give_the_flag_of_the_command_line(setting, place, model, capsys):
    change_recipe(place / "recipe.yaml", model_name_or_path=str(model))
    (place / "sweep.yaml").write_text(f"recipe: {place / 'recipe.yaml'}\nruns:\n  one: {{{setting}}}\n")
    assert main(["sweep", str(place / "sweep.yaml"), "--output_dir", str(place / "swept")]) == 2
    error = capsys.readouterr().err
    assert "only the command line can allow" in error or "looks like a flag" in error
    assert not (place / "ran").exists() and not (place / "swept").exists()


def test_a_data_set_with_a_script_is_refused(place, capsys):
    script = place / "rows" / "rows.py"
    script.parent.mkdir()
    script.write_text(f"open({str(place / 'ran')!r}, 'w')")
    recipe = change_recipe(place / "recipe.yaml", train_file=None, test_file=None, dataset_name=str(script.parent))
    assert main(["check", str(recipe), FLAG]) == 1
    assert "dataset " in capsys.readouterr().err and not (place / "ran").exists()


def test_a_gguf_file_is_read_without_the_files_beside_it(tmp_path, monkeypatch):
    for name in ("model.gguf", "config.json", "code.py", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    seen = []

    def load(*names, **options):
        seen.append([path.name for path in sorted(gguf.Path(names[-1]).iterdir())])
        assert options["trust_remote_code"] is False
        if len(seen) > 1:
            raise ValueError("not a model")
        return {}, {}

    monkeypatch.setattr(gguf.PretrainedConfig, "get_config_dict", load)
    monkeypatch.setattr(gguf, "load_pretrained", load)
    assert main(["import-gguf", str(tmp_path / "model.gguf"), str(tmp_path / "out")]) == 1
    assert seen == [["model.gguf"]] * 2


class Bomb:
    """A pickle that makes a file when it is read."""

    def __init__(self, ran):
        self.ran = str(ran)

    def __reduce__(self):
        return open, (self.ran, "w")


def test_pickled_weights_are_not_read(place, model_folders, capsys):
    folder = place / "pickled"
    shutil.copytree(model_folders["llama"], folder)
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(place / "ran"), folder / "pytorch_model.bin")
    torch.save(Bomb(place / "ran"), place / "run" / "adapter_model.bin")
    recipe = change_recipe(place / "recipe.yaml", model_name_or_path=str(folder), output_dir=str(place / "new"))
    assert main(["train", str(recipe)]) == 1
    assert "pickled: the folder cannot be loaded as a model" in capsys.readouterr().err
    (place / "run" / "adapter_model.safetensors").unlink()
    assert main(["predict", "--adapter", str(place / "run"), "--input", str(place / "test.jsonl")]) == 1
    assert "no adapter_model.safetensors there" in capsys.readouterr().err
    assert not (place / "ran").exists()


@pytest.mark.parametrize("name", ["README.md", "recipe.yaml", "results.json", "adapter_model.safetensors"])
def test_a_link_out_of_a_run_is_not_uploaded(name, place):
    secret = place / "secret"
    shutil.move(place / "run" / name, secret)
    (place / "run" / name).symlink_to(secret)
    with pytest.raises(DataError, match=f"run/{name}: a link to .*secret, out of the run's folder. Remove it"):
        plan_upload(place / "run", "ann/squad", "ann/tiny-llama")


def test_a_link_within_a_run_is_uploaded(place):
    shutil.move(place / "run" / "README.md", place / "run" / "card.md")
    (place / "run" / "README.md").symlink_to("card.md")
    assert "README.md" in plan_upload(place / "run", "ann/squad", "ann/tiny-llama")


@pytest.mark.parametrize("name", ["report.html", "README.md"])
def test_pages_replace_a_link_and_not_its_target(name, place):
    target = place / "theirs"
    target.write_text("kept")
    (place / "run" / name).unlink()
    (place / "run" / name).symlink_to(target)
    assert main(["report", str(place / "run")]) == 0 and main(["card", str(place / "run")]) == 0
    assert target.read_text() == "kept" and not (place / "run" / name).is_symlink()


def test_an_example_replaces_no_target_of_a_link(place, capsys):
    results = place / "run" / "results.json"
    shutil.move(results, place / "theirs")
    results.symlink_to(place / "theirs")
    before = (place / "theirs").read_bytes()
    assert main(["card", str(place / "run"), "--example", row_file(place)]) == 1
    assert "a link to" in capsys.readouterr().err and (place / "theirs").read_bytes() == before


@pytest.mark.parametrize("name", ["recipe.yaml", "template.yaml", "predictions", "predictions/test.jsonl"])
@pytest.mark.parametrize("command", ["report", "card"])
def test_a_page_shows_no_file_that_a_link_leads_to(command, name, place, capsys):
    shutil.move(place / "run" / name, place / "secret")
    (place / "run" / name).symlink_to(place / "secret")
    assert main([command, str(place / "run")]) == 1
    assert f"run/{name}: a link to " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../secret", "..", ".", "", "a/b", "a\\b", "a\nb", "a\0b", "\u202etest", None])
@pytest.mark.parametrize("command", ["show", "report", "card"])
def test_a_split_is_no_path(command, name, place, capsys):
    results = place / "run" / "results.json"
    values = json.loads(results.read_text())
    results.write_text(json.dumps(values | {"split": name, "splits": {}, "leakage": {}}))
    assert main([command, str(place / "run")]) == 1
    error = capsys.readouterr().err
    assert f"{results}: split is " in error and "expected train or validation or test" in error


@pytest.mark.parametrize("name", ["../stolen", "..", "a/b", "a\nb", "a\0b", "/"])
@pytest.mark.parametrize("command", ["show", "report", "card"])
def test_a_task_is_no_path(command, name, place, capsys):
    shutil.copytree(place / "run", place / "stolen")
    (place / "stolen" / "report.html").unlink()
    results = place / "run" / "results.json"
    results.write_text(json.dumps({"tasks": {name: json.loads(results.read_text())}, "seed": 1}))
    assert main([command, str(place / "run")]) == 1
    assert f"tasks is the text {name!r}, expected the name of a folder in the run" in capsys.readouterr().err
    assert not (place / "stolen" / "report.html").exists()


def test_a_task_is_no_link_out_of_its_run(place, capsys):
    shutil.copytree(place / "run", place / "stolen")
    (place / "run" / "one").symlink_to(place / "stolen")
    results = place / "run" / "results.json"
    results.write_text(json.dumps({"tasks": {"one": json.loads(results.read_text())}, "seed": 1}))
    assert main(["report", str(place / "run")]) == 1
    assert "run/one: a link to " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["...yaml", "a\nb.yaml"])
def test_a_task_has_the_name_of_a_file(name, place, capsys):
    shutil.copy(place / "recipe.yaml", place / name)
    recipe = change_recipe(
        place / "recipe.yaml", method="multitask_prompt_tuning", tasks=[str(place / name)], output_dir=None,
        train_file=None, test_file=None, task=None, template=None, max_source_tokens=None, max_target_tokens=None,
    )  # fmt: skip
    assert main(["check", str(recipe)]) == 2
    assert "is no name. Rename the file." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a/b", "'..'", '"a\\nb"', '"a\\0b"'])
def test_a_run_of_a_sweep_has_the_name_of_a_folder(name, place, capsys):
    (place / "sweep.yaml").write_text(f"recipe: {place / 'recipe.yaml'}\nruns:\n  {name}: {{seed: 1}}\n")
    assert main(["sweep", str(place / "sweep.yaml"), "--output_dir", str(place / "swept")]) == 2
    assert "its folder has its name" in capsys.readouterr().err


OPENED = None


def record(event, arguments):
    """Record the paths that Python opens or makes while OPENED is a list."""
    if OPENED is not None and event in ("open", "os.mkdir", "os.scandir", "os.listdir", "os.rename"):
        OPENED.extend(str(argument) for argument in arguments[:2])


sys.addaudithook(record)
PATHS = (
    "train_file", "validation_file", "test_file", "template", "teacher_template", "adapter", "init_adapter",
    "output_dir", "dataset_name", "resume_from_checkpoint", "deepspeed",
)  # fmt: skip


@pytest.mark.parametrize("command", ["predict", "report", "card", "show"])
def test_the_paths_in_the_recipe_of_a_run_are_neither_read_nor_written(command, place, monkeypatch):
    theirs = place / "theirs"
    shutil.copytree(place / "run", theirs)
    shutil.copy(place / "train.jsonl", theirs)
    paths = {name: str(theirs / "train.jsonl") if name.endswith("file") else str(theirs) for name in PATHS}
    paths |= {"template": str(theirs / "template.yaml"), "output_dir": str(theirs / "new")}
    change_recipe(place / "run" / "recipe.yaml", **paths)
    words = {"predict": ["--adapter", str(place / "run"), "--input", str(place / "test.jsonl")]}
    monkeypatch.setattr(sys.modules[__name__], "OPENED", [])
    assert main([command, *words.get(command, [str(place / "run")])]) == 0
    opened = OPENED
    monkeypatch.setattr(sys.modules[__name__], "OPENED", None)
    assert len(opened) > 3
    assert [path for path in opened if str(theirs) in path] == []


HOSTILE = "\x1b[2J\x9b31m\x07\u202e"


def is_safe(text):
    return printable(text) == text


@pytest.mark.parametrize("setting", ["max_target_tokens", "generation_max_length", "generation_num_beams"])
def test_the_recipe_of_a_run_does_not_let_its_model_write_without_an_end(setting, place, capsys):
    change_recipe(place / "run" / "recipe.yaml", **{setting: 10**9})
    assert main(["predict", "--adapter", str(place / "run"), "--input", str(place / "test.jsonl")]) != 0
    assert f"{setting} is 1000000000; it must be at least 1 and at most" in capsys.readouterr().err


def test_texts_of_a_run_are_shown_and_not_sent_to_the_terminal(place, capsys):
    run = place / "run"
    results, predictions = json.loads((run / "results.json").read_text()), run / "predictions" / "test.jsonl"
    changes = {"template": HOSTILE, "model": HOSTILE}
    (run / "results.json").write_text(json.dumps(results | changes))
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    texts = {"source": HOSTILE, "references": [HOSTILE], "soft_prompt": HOSTILE}
    write_jsonl(predictions, [row | texts for row in rows])
    (run / f"a{HOSTILE}b").touch()
    capsys.readouterr()
    assert main(["show", str(run)]) == 0
    out = capsys.readouterr().out
    assert is_safe(out) and out.count("\\x1b[2J\\x9b31m\\x07\\u202e") >= 6


def test_texts_of_a_recipe_are_shown_and_not_sent_to_the_terminal(place, capsys):
    rows = [row | {"context": f"{row['context']} {HOSTILE}"} for row in question_rows(3)]
    write_jsonl(place / "train.jsonl", rows)
    change_recipe(place / "recipe.yaml", train_file=str(place / "train.jsonl"))
    capsys.readouterr()
    assert main(["render", str(place / "recipe.yaml")]) == 0
    out = capsys.readouterr().out
    assert is_safe(out) and "\\x1b[2J" in out
    (place / "recipe.yaml").write_text('"\\e[2J\\u202E": 1\n')
    shutil.copy(place / "recipe.yaml", place / f"{HOSTILE}.yaml")
    assert main(["check", str(place / f"{HOSTILE}.yaml")]) == 2
    error = capsys.readouterr().err
    assert is_safe(error) and "\\x1b[2J" in error
    (place / "theirs.yaml").write_text('"\\e[2J": {source: "{{ a }} \\e[2J", target: "{{ b }}"}\n')
    assert main(["templates", str(place / "theirs.yaml")]) == 0
    assert main(["templates", str(place / "theirs.yaml"), "--row", '{"a": "\\u009b", "b": "c"}']) == 0
    out = capsys.readouterr().out
    assert is_safe(out) and "\\x1b[2J" in out


def test_rows_on_standard_output_are_json_of_the_same_value(place, capsys):
    row = question_rows(1)[0] | {"note": HOSTILE, "שם": "דנה"}
    write_jsonl(place / "rows.jsonl", [row])
    capsys.readouterr()
    command = ["predict", "--adapter", str(place / "run"), "--input", str(place / "rows.jsonl")]
    assert main(command) == 0
    out = capsys.readouterr().out
    predicted = json.loads(out)
    assert is_safe(out) and "דנה" in out and predicted["note"] == HOSTILE
    assert main([*command, "--output", str(place / "out.jsonl")]) == 0
    assert json.loads((place / "out.jsonl").read_text()) == predicted


def test_a_pickle_in_a_checkpoint_is_not_run(place):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "adapter_model.bin"):
        torch.save(Bomb(place / "ran"), place / "run" / "checkpoint-1" / name)
    words = ["train", str(place / "recipe.yaml"), "--max_steps", "2", "--output_dir", str(place / "run")]
    for train_file in ("train", "test"):
        words.append(f"--{train_file}_file={place / train_file}.jsonl")
    with contextlib.suppress(Exception):  # How a damaged checkpoint is reported is tested elsewhere.
        main([*words, "--resume_from_checkpoint", "true"])
    assert not (place / "ran").exists()


def test_an_adapter_that_names_other_adapters_is_refused(place, capsys):
    file = place / "run" / "adapter_config.json"
    base = json.loads(file.read_text())["base_model_name_or_path"]
    mixture = {
        "peft_type": "XLORA",
        "task_type": "CAUSAL_LM",
        "hidden_size": 32,
        "adapters": {"0": str(place / "theirs")},
    }
    file.write_text(json.dumps(mixture | {"base_model_name_or_path": base}))
    assert main(["predict", "--adapter", str(place / "run"), "--input", str(place / "test.jsonl")]) == 1
    assert "run: it mixes other adapters, which its file names." in capsys.readouterr().err
