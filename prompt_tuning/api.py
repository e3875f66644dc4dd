"""The path of the command line from Python and in notebooks: train, look, predict, evaluate, rank, compare.

Each function does what the command of its name does, with the same checks, files and results. Rows may also be in
memory. They are kept in the folder of what is written, so that the recipe there names them and repeats the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prompt_tuning.data.in_memory import Rows, save_rows
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.recipe.drafts import pairs_of_settings, read_draft
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.parser import RecipeParser, to_argv
from prompt_tuning.recipe.recipe import RecipeSource
from prompt_tuning.reports.html import write_report
from prompt_tuning.reports.notebook import run_html
from prompt_tuning.reports.run_files import read_log_history, read_predictions, read_results
from prompt_tuning.runs import evaluate as evaluation
from prompt_tuning.runs import train as training
from prompt_tuning.runs.earlier_run import check_folder
from prompt_tuning.runs.predictor import Predictor
from prompt_tuning.studies import compare as comparison
from prompt_tuning.studies import rank as ranking
from prompt_tuning.support.run_folder import RunFolder


class Run:
    """A finished run. In a notebook it shows its scores, its best checkpoint and some of its rows.

    Args:
        path: the folder that `train` or `evaluate` wrote.

    Raises:
        DataError: the folder holds no finished run.

    >>> import prompt_tuning as pt
    >>> run = pt.Run("runs/mine")
    >>> sorted(run.results["soft_prompt"])
    ['exact_match', 'f1']
    >>> predict = run.predictor()
    >>> len(predict([{"context": "Ada lives in Turin.", "question": "Where does Ada live?"}]))
    1
    >>> run.report().name
    'report.html'
    """

    def __init__(self, path: str | Path) -> None:
        """Find the files of the run."""
        self.folder = RunFolder(Path(path))
        read_results(self.path)

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return self.folder.path

    @property
    def results(self) -> dict[str, Any]:
        """Scores and facts, as results.json has them. A run of several tasks has those of each under `tasks`."""
        return read_results(self.path)

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """The evaluated rows with what each prompt wrote, for a data frame."""
        return read_predictions(self.folder, self.results)

    @property
    def log_history(self) -> list[dict[str, Any]]:
        """What Trainer logged, for a data frame; nothing for a run that trained nothing."""
        return read_log_history(self.folder) if self.folder.log_history.is_file() else []

    def task(self, name: str) -> Run:
        """Return the run of one of several tasks.

        Raises:
            DataError: the run has no such task.
        """
        tasks = self.results.get("tasks", {})
        if name not in tasks:
            raise DataError(f"{self.path}: no task {name!r}. It has {', '.join(tasks) or 'no tasks'}.")
        return Run(self.folder.task(name).path)

    def predictor(self, *, trust_remote_code: bool = False) -> Predictor:
        """Load the model and the prompt.

        Args:
            trust_remote_code: run the Python code that is with the model.

        Raises:
            AdapterError: the run trained nothing, or is damaged.
            ModelError: the base model is not found.
        """
        return Predictor.load(self.path, trust_remote_code=trust_remote_code)

    def report(self) -> Path:
        """Return the file report.html of the run, and write it if it is not there."""
        return self.folder.report if self.folder.report.is_file() else write_report(self.path)

    def __repr__(self) -> str:
        """Return what makes the run again in Python."""
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return run_html(self.path)


def train(
    recipe: RecipeSource,
    *,
    train_dataset: Rows | None = None,
    eval_dataset: Rows | None = None,
    test_dataset: Rows | None = None,
    **settings: Any,
) -> Run:
    """Train a prompt, evaluate it and save it, as `prompt-tuning train` does.

    Args:
        recipe: a YAML file, or its settings as a dict.
        train_dataset: training rows: a Dataset, a data frame of pandas or a list of dicts.
        eval_dataset: validation rows.
        test_dataset: test rows.
        settings: settings that replace those of the recipe, such as `max_steps=4`.

    Returns:
        The run in its output_dir.

    Raises:
        PromptTuningError: everything that is wrong with the recipe and the rows, before a model loads; or what stops
            the training.
        Stopped: a signal stopped the training, which saved a checkpoint.

    >>> import prompt_tuning as pt
    >>> run = pt.train("recipe.yaml", max_steps=2, output_dir="runs/short")
    {'train_runtime': ...}
    >>> run
    Run('runs/short')
    >>> import pandas as pd
    >>> frame = pd.read_json("train.jsonl", lines=True)
    >>> run = pt.train("recipe.yaml", train_dataset=frame.head(12), max_steps=1, output_dir="runs/few")
    {'train_runtime': ...}
    >>> run.results["train_rows"]
    12
    """
    flags = _flags(settings)
    rows = {"train": train_dataset, "validation": eval_dataset, "test": test_dataset}
    flags += _files(rows, _output_dir(recipe, flags), RunFolder.TRAINED)
    return Run(training.train(load_recipe(recipe, flags)))


def evaluate(
    recipe: RecipeSource,
    adapter: Run | str | Path | None = None,
    *,
    test_dataset: Rows | None = None,
    split: str = "test",
    **settings: Any,
) -> Run:
    """Evaluate a split with a trained prompt, or with the hard prompt alone, as `prompt-tuning evaluate` does.

    Args:
        recipe: a YAML file, or its settings as a dict. That of a run is `run.folder.recipe`.
        adapter: a run, its folder or its hub id; None for the hard prompt alone.
        test_dataset: test rows: a Dataset, a data frame of pandas or a list of dicts.
        split: train, validation or test.
        settings: settings that replace those of the recipe.

    Returns:
        The evaluation, in `output_dir` if it is among the settings, else in a folder inside that of the recipe.

    Raises:
        PromptTuningError: everything that is wrong with the recipe, the rows and the adapter.

    >>> import prompt_tuning as pt
    >>> rows = [{"context": "Ada lives in Turin.", "question": "Where does Ada live?", "answers": {"text": ["Turin"]}}]
    >>> evaluation = pt.evaluate("recipe.yaml", "runs/mine", test_dataset=rows, output_dir="runs/one-row")
    >>> evaluation.results["rows"]
    1
    """
    flags = _flags(settings)
    is_named = "output_dir" in settings
    names = RunFolder.EVALUATED if is_named else RunFolder.TRAINED
    flags += _files({"test": test_dataset}, _output_dir(recipe, flags), names)
    folder = Path(settings["output_dir"]) if is_named else None
    name = str(adapter.path if isinstance(adapter, Run) else adapter) if adapter else None
    return Run(evaluation.evaluate(load_recipe(recipe, flags), name, split, folder))


def rank(
    recipe: RecipeSource,
    *,
    train_dataset: Rows | None = None,
    eval_dataset: Rows | None = None,
    templates: Sequence[str] | None = None,
    num_demonstrations: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    rows: int | None = None,
    finalists: int = 3,
    output_dir: str | Path = "runs/rank",
    **settings: Any,
) -> dict[str, Any]:
    """Find the best template and number of demonstrations without training, as `prompt-tuning rank` does.

    Args:
        recipe: a YAML file, or its settings as a dict.
        train_dataset: training rows, for demonstrations: a Dataset, a data frame of pandas or a list of dicts.
        eval_dataset: validation rows.
        templates: shipped templates, YAML files, FILE:NAME or folders; None for all of the task.
        num_demonstrations: training rows that are shown before a source; None for the recipe's number.
        seeds: draw the demonstrations; None for the recipe's seed.
        rows: the first validation rows; None for all.
        finalists: how many candidates write predictions.
        output_dir: the folder to write. The same call resumes a stopped ranking in it.
        settings: settings that replace those of the recipe.

    Returns:
        What rank.json holds. The recipe of the best is winner.yaml in the folder.

    Raises:
        PromptTuningError: everything that is wrong with the recipe, the rows and the templates.

    >>> import prompt_tuning as pt
    >>> ranked = pt.rank("recipe.yaml", templates=["question_answering/plain"], num_demonstrations=[0, 1])
    >>> len(ranked["candidates"])
    2
    """
    folder = Path(output_dir)
    flags = _flags(settings)
    flags += _files({"train": train_dataset, "validation": eval_dataset}, folder, ranking.FILES)
    return ranking.rank(
        recipe,
        flags,
        folder,
        templates=_list(templates),
        counts=_list(num_demonstrations),
        seeds=_list(seeds),
        rows=rows,
        finalists=finalists,
    )


def compare(
    recipes: Sequence[str | Path] | Mapping[str, RecipeSource],
    *,
    train_dataset: Rows | None = None,
    eval_dataset: Rows | None = None,
    test_dataset: Rows | None = None,
    seeds: Sequence[int] = (42,),
    metric: str | None = None,
    learning_rates: Sequence[float] = (),
    equal_time: bool = False,
    output_dir: str | Path = "runs/compare",
    **settings: Any,
) -> dict[str, Any]:
    """Train several recipes on the same rows and say which is better, as `prompt-tuning compare` does.

    Args:
        recipes: YAML files, or recipes by their names in the table. The others are compared with the first.
        train_dataset: training rows: a Dataset, a data frame of pandas or a list of dicts.
        eval_dataset: validation rows.
        test_dataset: test rows.
        seeds: each recipe is trained once with each.
        metric: by default the task's main metric.
        learning_rates: rates to try for each recipe without its own.
        equal_time: also train the others for as many steps as fit in the time of the first.
        output_dir: the folder to write. The same call resumes a stopped comparison in it.
        settings: settings that replace those of all recipes.

    Returns:
        What compare.json holds.

    Raises:
        PromptTuningError: everything that is wrong with the recipes and the rows; or what stops a training.

    >>> import prompt_tuning as pt
    >>> recipe = {"model_name_or_path": "models/tiny", "task": "question_answering", "test_file": "test.jsonl"}
    >>> recipe |= {"template": "question_answering/plain", "method": "none", "max_source_tokens": 96}
    >>> brief = recipe | {"template": "question_answering/instruction"}
    >>> compared = pt.compare({"plain": recipe, "brief": brief}, output_dir="runs/hard")
    >>> list(compared["parts"])
    ['plain', 'brief']
    """
    folder = Path(output_dir)
    flags = _flags(settings)
    rows = {"train": train_dataset, "validation": eval_dataset, "test": test_dataset}
    flags += _files(rows, folder, comparison.FILES)
    return comparison.compare(
        recipes if isinstance(recipes, Mapping) else [str(path) for path in recipes],
        flags,
        list(seeds),
        folder,
        metric,
        learning_rates=learning_rates,
        equal_time=equal_time,
    )


def _flags(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as flags of the command line.

    Raises:
        RecipeError: with all that is wrong with any of them.
    """
    parser = RecipeParser()
    flags: list[str] = []
    problems = []
    for name, value in settings.items():
        if value is None:
            flags += to_argv(name, "null")
    for pair in pairs_of_settings(settings):
        problem = parser.pair_error(pair.key, pair.value)
        problems += [problem] if problem else []
        flags += to_argv(pair.key, pair.value)
    if problems:
        raise RecipeError("\n".join(problems))
    return flags


def _files(rows: Mapping[str, Rows | None], folder: Path, names: Sequence[str]) -> list[str]:
    """Keep rows in a folder, and return the flags that name their files.

    Args:
        rows: the rows of every split; None for a split that the recipe names.
        folder: what will be written to.
        names: the files that will be written there, which others may have too.

    Raises:
        RecipeError: the folder holds files of others.
        DataError: these are no rows.
    """
    arguments = {"train": "train_dataset", "validation": "eval_dataset", "test": "test_dataset"}
    flags = []
    for split, of_split in rows.items():
        if of_split is not None:
            check_folder(folder, names)
            path = save_rows(of_split, folder / RunFolder.INPUT_ROWS, split, arguments[split])
            flags.append(f"--{split}_file={path}")
    return flags


def _output_dir(recipe: RecipeSource, flags: list[str]) -> Path:
    return Path(read_draft(recipe, flags).training.output_dir)


def _list(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)
