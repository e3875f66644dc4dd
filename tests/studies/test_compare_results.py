"""A comparison's differences, words and costs, from runs that are made up."""

from dataclasses import replace

import pytest

from prompt_tuning.errors import DataError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.reports.run_files import read_evaluation
from prompt_tuning.studies.compare_results import EvaluatedRun, RecipeRuns, compare_runs
from prompt_tuning.studies.compare_table import comparison_text
from prompt_tuning.support.files import write_json
from prompt_tuning.support.run_folder import RunFolder

REFERENCES = [[f"the {word} cat sat on the old mat by the door"] for word in ("red", "big", "shy", "wet", "sad") * 4]
GOOD = [texts[0] for texts in REFERENCES]
POOR = [text.replace("old mat by", "new rug at") if number % 3 else text for number, text in enumerate(GOOD)]


@pytest.fixture
def runs_of(recipe_file, tmp_path):
    """Return a function that makes up the runs of a recipe of translation, one for each list of predictions."""

    def make(name, *predictions, tried=(), key="soft_prompt", **changes):
        settings = {"task": "translation", "source_lang": "fr", "target_lang": "en", "template": "translation/plain"}
        recipe = load_recipe(recipe_file(**settings, num_virtual_tokens=None, **changes))
        runs = []
        for number, texts in enumerate(predictions):
            facts = {
                "train_steps": 60, "trainable_parameters": 10, "train_seconds": 90, "seconds_per_step": 1 + number,
                "added_memory_bytes": 2**20 * (3 + number),
            }  # fmt: skip
            evaluation = {key: {"bleu": 10.0}, "prediction_seconds": {key: 5}, "rows": len(texts)}
            runs.append(EvaluatedRun(tmp_path, facts, evaluation, key, texts, REFERENCES))
        return RecipeRuns(name, recipe, runs, 3e-3 if tried else None, dict(tried))

    return make


def test_a_corpus_metric_has_a_paired_difference_in_words(runs_of):
    lora = runs_of("lora", POOR, POOR, method="lora", lora_use_dora="true", key="lora")
    soft = runs_of("soft", GOOD, GOOD, tried=[(3e-3, 20.0), (1e-3, None)])
    same = runs_of("same", POOR)
    compared = compare_runs([lora, soft, same], "bleu")
    against = compared["parts"]["soft"]["against_first"]
    assert 0 < against["low"] < against["difference"] < against["high"]
    assert against["in_words"] == "ahead" and against["p"] < 0.05
    assert compared["parts"]["same"]["against_first"] == {
        "difference": 0, "low": 0, "high": 0, "p": 1, "in_words": "level",
    }  # fmt: skip
    assert "differences by draws of rows and seeds" in compared["test"]
    costs = compared["parts"]["lora"]
    assert costs["seconds_per_step"] == 1.5 and costs["added_memory_bytes"] == 2**22
    assert (costs["served_by"], costs["learning_rate"]) == ("PEFT", 1e-3)
    text = comparison_text({"metric": "bleu", "rows": 20, "seeds": [1, 2], **compared})
    assert "| ahead " in text and "| any engine, after export" in text and "0.003: 20.0, 0.001: diverged" in text


@pytest.mark.parametrize(
    ("tried", "note"),
    [
        (
            [(3e-3, 20.0), (1e-3, 20.0), (1e-2, 9.0)],
            "soft: 0.003, 0.001 have equal scores, and the first of them is taken",
        ),
        ([(3e-3, 20.0), (1e-3, 9.0), (1e-2, None)], "learning rates: the best on the validation rows with seed 1"),
        ([(3e-3, 20.0), (1e-2, None)], "soft: the smallest rate won, so a better one may lie beyond it"),
    ],
)
def test_a_rate_wins_only_if_no_other_one_has_its_score(runs_of, tried, note):
    compared = compare_runs([runs_of("soft", GOOD, tried=tried), runs_of("same", POOR)], "bleu")
    text = comparison_text({"metric": "bleu", "rows": 20, "seeds": [1], **compared})
    last_line = text.splitlines()[-1]
    assert note in last_line and last_line.count(" won") + last_line.count("equal") == note.startswith("soft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": REFERENCES[::-1]}, "its predictions are of other rows"),
        ({"references": REFERENCES[1:], "predictions": POOR[1:]}, "its predictions are of other rows"),
        ({"evaluation": {"soft_prompt": {"chrf": 1.0}}}, "it has no bleu"),
        ({"evaluation": {"soft_prompt": {"bleu": "many", "chrf": 1.0}}}, "it has no bleu"),
    ],
)
def test_a_run_of_other_rows_or_metrics_is_named(changes, message, runs_of):
    soft = runs_of("soft", POOR)
    soft.runs[0] = replace(soft.runs[0], **changes)
    with pytest.raises(DataError, match=message):
        compare_runs([runs_of("first", GOOD), soft], "bleu")


def test_an_evaluation_of_several_tasks_is_refused(tmp_path):
    of_task = {
        "seed": 1, "task": "translation", "split": "test", "rows": 1, "cut_rows": 0, "model": "m", "template": "t",
        "decoding": {"choices": "x", "choice_normalization": "none"}, "leakage": {}, "versions": {},
        "hard_prompt": {"bleu": 1.0}, "evaluation_seconds": 1, "prediction_seconds": {"hard_prompt": 1},
    }  # fmt: skip
    write_json(tmp_path / "results.json", of_task)
    assert read_evaluation(RunFolder(tmp_path), "hard_prompt")[1].values == {"bleu": 1.0}
    write_json(tmp_path / "results.json", of_task | {"tasks": {"one": of_task}})
    with pytest.raises(DataError, match="tasks is there, expected the results of one task"):
        read_evaluation(RunFolder(tmp_path), "hard_prompt")


def test_prompts_of_encoder_decoder_models_are_served_only_by_peft(runs_of, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"task_type": "SEQ_2_SEQ_LM"}')
    compared = compare_runs([runs_of("soft", GOOD), runs_of("hard", POOR, method="none", key="hard_prompt")], "bleu")
    assert compared["parts"]["soft"]["served_by"] == "PEFT"
    assert compared["parts"]["hard"]["served_by"] == "any engine"
