"""Every benchmark imports what it needs from the current code, and `make benchmark` names benchmarks that exist."""

from pathlib import Path

import pytest
import torch
from helpers.benchmarks import load_benchmark
from helpers.paths import ROOT
from helpers.rows import question_rows, write_jsonl
from transformers import LlamaForCausalLM

from prompt_tuning import add_soft_prompt, prompt_config
from prompt_tuning.models.initialization import saved_prompt
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.studies.run_lists import read_sweep

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_can_be_imported(name):
    module = load_benchmark(name)
    assert name == "common" or callable(module.main)


def test_results_have_a_part_of_each_benchmark_that_is_run():
    benchmarks = load_benchmark("run").BENCHMARKS
    results = (ROOT / "benchmarks" / "results.md").read_text(encoding="utf-8")
    assert [name for name in benchmarks if f"`python benchmarks/{name}.py" not in results] == []


def test_an_unknown_benchmark_is_refused(monkeypatch, capsys):
    run = load_benchmark("run")
    monkeypatch.setattr("sys.argv", ["run.py", "nothing"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    assert "no benchmark nothing" in capsys.readouterr().err


def test_the_comparison_of_methods_runs_on_a_tiny_model(model_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    rows = tmp_path / "qa-newwiki"
    rows.mkdir()
    for split, count in (("train", 40), ("validation", 8), ("test", 8)):
        write_jsonl(rows / f"{split}.jsonl", question_rows(count, len(split)))
    flags = ["--only", "lora", "prompt", "--short", "--seeds", "1", "--use_cpu=true", "--disable_tqdm=true"]
    comparison = load_benchmark("comparison")
    comparison.main([str(tmp_path), *flags, f"--model_name_or_path={model_folders['llama']}"])
    text = capsys.readouterr().out
    assert "| lora " in text and "| prompt " in text and "0.0001: " in text and "0.0003: " in text
    assert "as many steps as fit in the time of lora" in text


def test_choices_of_a_training_reach_a_prefix(model_folders, tmp_path, monkeypatch, capsys):
    choices = load_benchmark("training_choices")
    monkeypatch.chdir(ROOT)
    chosen = {name: choices.CHOICES[name] for name in ("first token frozen, as an attention sink", "beta2 0.95")}
    monkeypatch.setattr(choices, "CHOICES", chosen | {"none": choices.Choice(averaged=2)})
    prefixes = []

    class Kept(choices.Chosen):
        def on_train_end(self, args, state, control, **kwargs):
            prefixes.append([value.detach().clone() for value in (self.start, self.trained[0])])

        def on_train_begin(self, args, state, control, **kwargs):
            self.start = self.trained[0].detach().clone()

    monkeypatch.setattr(choices, "Chosen", Kept)
    rows = tmp_path / "qa-newwiki"
    rows.mkdir()
    for split, count in (("train", 40), ("validation", 4)):
        write_jsonl(rows / f"{split}.jsonl", question_rows(count, len(split)))
    flags = ["--task", "qa-newwiki", "--seeds", "1", "--max_steps=3", "--use_cpu=true", "--init=vocab"]
    model = f"--model_name_or_path={model_folders['llama']}"
    choices.main([str(tmp_path), "prefix", *flags, model, "--num_virtual_tokens=3", "--max_target_tokens=4"])
    assert capsys.readouterr().out.count("\n| ") == 4
    moves = [(trained - start).abs().sum(1) for start, trained in prefixes]
    assert moves[0][0] == 0 and (moves[0][1:] > 0).all()
    assert all((move > 0).all() for move in moves[1:])


def test_a_prompt_moved_to_a_rotated_model_has_the_same_loss(tokenizer, model_folders, tmp_path, capsys):
    transfer = load_benchmark("transfer")
    base = LlamaForCausalLM.from_pretrained(model_folders["llama"]).eval()
    for norm in ("input_layernorm", "post_attention_layernorm"):
        getattr(base.model.layers[0], norm).weight.data.uniform_(0.5, 2)
    turned = transfer.rotated(base)
    ids = torch.arange(20, 28)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    prompt = torch.randn(4, base.config.hidden_size)
    add_soft_prompt(base, prompt_config(base, 4), prompt).save_pretrained(tmp_path / "old")
    expected = transfer.loss(base, prompt, batch)
    assert transfer.loss(turned, None, batch) == pytest.approx(transfer.loss(base, None, batch), abs=1e-4)
    assert transfer.loss(turned, prompt, batch) != pytest.approx(expected, abs=1e-2)
    for name, model in (("base", base), ("turned", turned)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    models = [f"--old_model={tmp_path / 'base'}", f"--model={tmp_path / 'turned'}"]
    transfer.main([str(tmp_path / "old"), *models, f"--output={tmp_path / 'moved'}"])
    assert f"{len(tokenizer)} common tokens" in capsys.readouterr().out
    moved = saved_prompt(tmp_path / "moved")
    assert transfer.loss(turned, moved, batch) == pytest.approx(expected, abs=1e-4)


def test_every_method_of_the_comparison_suits_every_task(monkeypatch):
    monkeypatch.chdir(ROOT)
    comparison = load_benchmark("comparison")
    runs = read_sweep(comparison.RECIPES / "methods.yaml", takes_learning_rates=True)
    files = [f"--{split}_file=recipes/quickstart/{split}.jsonl" for split in ("train", "validation", "test")]
    for task in comparison.TASKS:
        for run in runs.values():
            recipe = load_recipe(comparison.RECIPES / f"{task}.yaml", [*run.flags, *files])
            assert len(run.learning_rates) == (0 if recipe.prompt.method == "none" else 4)


def test_make_tables_names_scripts_and_recipes_and_makes_no_table_twice(tmp_path, monkeypatch, capsys):
    tables = load_benchmark("tables")
    tables.main([str(tmp_path), "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) == 3 * 3 + 2 + 2 + 8
    for line in lines:
        for word in line.split():
            assert not word.startswith(("benchmarks/", "recipes/")) or (ROOT / word).is_file(), word
    ran = []

    def run(command, **settings):
        ran.append(Path(command[1]).stem)
        return type("Done", (), {"stdout": "| a table |\n"})

    monkeypatch.setattr(tables, "TABLES", tmp_path / "tables.md")
    monkeypatch.setattr(tables.subprocess, "run", run)
    for _ in range(2):
        tables.main([str(tmp_path), "methods", "multitask"])
    assert ran == ["methods", "multitask"]
    assert (tmp_path / "tables.md").read_text().count("| a table |") == 2
