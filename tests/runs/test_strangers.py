"""Files of a stranger run no code, and their paths lead nowhere: recipes, sweeps, runs, models and metrics."""

import json
import shutil

import pytest
import torch
import yaml
from helpers.models import forbid_model_loading
from helpers.rows import question_rows, write_jsonl

from prompt_tuning import Predictor
from prompt_tuning.cli.main import main
from prompt_tuning.models import gguf

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
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nfrom transformers import "
    (folder / "code.py").write_text(code + "LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T\n")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code + "LlamaForCausalLM\ndef generate(**kwargs): pass\n")
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

    def load(auto, name, **options):
        seen.append([path.name for path in sorted(gguf.Path(name).iterdir())])
        assert options["trust_remote_code"] is False
        raise ValueError("not a model")

    monkeypatch.setattr(gguf, "load_pretrained", load)
    assert main(["import-gguf", str(tmp_path / "model.gguf"), str(tmp_path / "out")]) == 1
    assert seen == [["model.gguf"]]


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
