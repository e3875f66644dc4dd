"""Find the best hard prompt for a model: templates x numbers of demonstrations x seeds, on the same validation rows.

1. rank_candidates.py chooses the candidates and encodes the validation rows as every candidate writes them.
2. rank_likelihoods.py scores the targets' likelihood with successive halving, which needs no generation.
3. The finalists write their predictions.
4. rank_results.py compares the finalists by the task's metric, and rank_table.py writes the table.

A model behind an API gives no likelihoods: rank_answers.py takes the place of 2 to 4.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from accelerate import PartialState
from transformers import PreTrainedModel

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.engine.dispatch import autocast_dtype, autocasting
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.metrics.loading import MAIN_METRIC, score_example_row
from prompt_tuning.models.loading import load_base_model
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import Recipe, RecipeSource, changed_settings
from prompt_tuning.runs.api_model import ApiModel
from prompt_tuning.runs.evaluate import trainer_for
from prompt_tuning.runs.fingerprints import rows_fingerprint, weights_fingerprint
from prompt_tuning.runs.output_folder import hold_folder, removed_without_scores
from prompt_tuning.runs.prepare import Prepared, score_of
from prompt_tuning.runs.sharding import refuse_sharding
from prompt_tuning.studies.rank_answers import rank_by_answers
from prompt_tuning.studies.rank_candidates import (
    Candidate,
    choose_templates,
    make_candidates,
    prepare_candidates,
    validation_rows,
)
from prompt_tuning.studies.rank_likelihoods import LikelihoodTable, find_finalists, halving_plan
from prompt_tuning.studies.rank_results import rank_facts
from prompt_tuning.studies.rank_table import rank_text
from prompt_tuning.studies.run_lists import flags_of_ranking
from prompt_tuning.support.files import read_json, read_json_lines, write_json, write_json_lines, write_text
from prompt_tuning.support.text import counted, one_line
from prompt_tuning.support.yaml_files import to_yaml

logger = logging.getLogger(__name__)

LIKELIHOODS = "likelihoods.jsonl"
PREDICTIONS = "predictions.jsonl"
SETTINGS = "settings.json"
WINNER = "winner.yaml"
TABLES = ("rank.json", "rank.md")
FILES = (PREDICTIONS, WINNER, *TABLES)


class FinalistRow(TypedDict):
    """A row of the finalists' predictions."""

    candidate: str
    prediction: str


# Scores depend on these settings, besides the model's, decoding, and what the tokens of the rows show.
SCORE_SETTINGS = {
    "task", "lang", "target_lang", "metrics", "choice_normalization", "bf16", "fp16", "tf32",
}  # fmt: skip
PROMPT_STARTS = ("adapter", "init_text", "init_labels", "init_adapter", "num_virtual_tokens")


def rank(
    source: RecipeSource,
    overrides: list[str],
    folder: Path,
    *,
    templates: list[str] | None = None,
    counts: list[int] | None = None,
    seeds: list[int] | None = None,
    rows: int | None = None,
    finalists: int = 3,
) -> dict[str, Any]:
    """Score what has no score yet, and write rank.json, rank.md and winner.yaml, a recipe.

    Args:
        source: a recipe.
        overrides: flags of the recipe.
        folder: for what is written. The same call resumes a stopped ranking in it.
        templates: as `load_templates` takes them; by default the recipe's own and all that are shipped for its task,
            except those that are answered by choosing.
        counts: numbers of demonstrations; by default the recipe's.
        seeds: draw the demonstrations; by default the recipe's.
        rows: the first validation rows, instead of all.
        finalists: how many candidates write predictions.

    Returns:
        What rank.json holds.

    Raises:
        RecipeError: there is nothing to rank, or the folder holds a ranking with other settings.
    """
    recipe = _load_recipe(source, overrides, counts)
    metric = _main_metric(recipe)
    names, left_out = choose_templates(recipe, templates)
    counts = counts or [recipe.prompt.num_demonstrations]
    candidates = make_candidates(recipe, names, counts, seeds or [recipe.training.seed])
    prepared, unfit = prepare_candidates(recipe, candidates, rows)
    if not prepared:
        reasons = dict.fromkeys((unfit or left_out).values())
        raise RecipeError("\n".join([f"{recipe.path}: no template could be ranked", *reasons]))
    num_rows = len(validation_rows(next(iter(prepared.values()))))
    plan = halving_plan(len(prepared), num_rows, finalists)
    is_ranking = (folder / SETTINGS).is_file() or (folder / LIKELIHOODS).is_file()  # `_check_settings` judges them.
    has_scores = functools.partial(_has_scores, folder)
    with (
        hold_folder(folder, FILES, written_before=is_ranking),
        removed_without_scores(folder / SETTINGS, has_scores),
    ):
        _check_settings(folder, recipe, prepared, finalists)
        ranked = {"metric": metric, "rows": num_rows, **_score(recipe, prepared, plan, metric, folder)}
        ranked |= {"halving": plan, "left_out": left_out | unfit}
        winner = ranked["winner"]
        ranked["next"] = _prompt_hint(recipe, candidates[winner], prepared[winner])
        if PartialState().is_main_process:
            _write_winner(recipe, candidates[winner], ranked["next"], folder / WINNER)
            _write_results(ranked, folder)
    return ranked


def _score(
    recipe: Recipe, prepared: Mapping[str, Prepared], plan: list[tuple[int, int]], metric: str, folder: Path
) -> dict[str, Any]:
    """Score what has no score yet in the folder, and return the facts of the candidates and the winner."""
    first = next(iter(prepared.values()))

    @functools.cache
    def model() -> PreTrainedModel:
        return load_base_model(recipe.model, first.config).to(recipe.training.device)

    if recipe.model.api_name is not None:
        facts, texts = rank_by_answers(ApiModel.load(recipe.model), prepared, plan, metric)
        _write_predictions(texts, folder / PREDICTIONS)
        return facts
    args = recipe.training
    table = LikelihoodTable(folder / LIKELIHOODS, prepared)
    with autocasting(args.device.type, autocast_dtype(vars(args))):  # Predictions are computed under it too.
        best = find_finalists(model, prepared, table, plan, disable_tqdm=args.disable_tqdm)
    texts = _predict(model, prepared, best, folder / PREDICTIONS)
    return rank_facts(prepared, table, texts, metric)


def _load_recipe(source: RecipeSource, overrides: list[str], counts: list[int] | None) -> Recipe:
    """Load the recipe with the largest number of demonstrations, so that it is checked with demonstrations."""
    recipe = load_recipe(source, [*overrides, *flags_of_ranking(counts)])
    refuse_sharding(recipe, "rank")
    if METHODS[recipe.prompt.method].trains_several_tasks:
        raise RecipeError(f"{recipe.path}: rank is for one task; name one of {', '.join(recipe.prompt.tasks or ())}")
    return recipe


def _main_metric(recipe: Recipe) -> str:
    metric = MAIN_METRIC[str(recipe.data.task)]
    metrics = score_example_row(score_of(recipe)).values
    if metric not in metrics:
        raise RecipeError(f"metrics give {', '.join(metrics)}, and rank goes by {metric}; leave metrics out")
    return metric


def _check_settings(folder: Path, recipe: Recipe, prepared: Mapping[str, Prepared], finalists: int) -> None:
    """Write what the scores in a folder depend on.

    Raises:
        RecipeError: the folder holds scores of other settings, or scores without settings.
    """
    resolved = replace(recipe, prompt=replace(recipe.prompt, method="none")).resolved()
    names = vars(recipe.model).keys() | SCORE_SETTINGS
    settings = {key: value for key, value in resolved.items() if key in names}
    settings |= {"decoding": recipe.decoding, "finalists": finalists}
    if recipe.model.api_name is None:
        settings["weights"] = weights_fingerprint(str(recipe.model.model_name_or_path), recipe.model.model_revision)
    else:
        settings["base_url"] = recipe.model.base_url
    settings["candidates"] = {
        name: rows_fingerprint(validation_rows(candidate), candidate.template.stop)
        for name, candidate in prepared.items()
    }
    settings = json.loads(json.dumps(settings))
    file = folder / SETTINGS
    try:
        saved = read_json(file) if file.is_file() else {}
    except DataError:
        saved = None
    if not isinstance(saved, dict) or (not saved and (_has_scores(folder) or file.is_file())):
        raise RecipeError(
            f"{file}: {'damaged' if file.is_file() else 'missing'}, so the settings of the scores beside it are not "
            f"known. Remove the folder {folder}, or name another --output_dir."
        )
    changed = changed_settings(saved, settings) if saved else []
    weights = settings.get("weights")
    if weights not in (None, "unknown") and saved.get("weights") == weights:
        # A base model that moved is the same model.
        changed = [name for name in changed if name != "model_name_or_path"]
    if changed:
        raise RecipeError(
            f"{folder} holds a ranking with other settings or rows ({', '.join(changed)}). Remove it, or name another "
            "--output_dir."
        )
    PartialState().wait_for_everyone()  # The others have read the folder, too.
    if PartialState().is_main_process:
        write_json(file, settings)


def _has_scores(folder: Path) -> bool:
    return (folder / LIKELIHOODS).is_file() or (folder / PREDICTIONS).is_file()


def _predict(
    model: Callable[[], PreTrainedModel], prepared: Mapping[str, Prepared], finalists: Sequence[str], file: Path
) -> dict[str, list[str]]:
    """Return what the model writes for all rows, by finalist. A finalist that is in the file writes nothing."""
    texts: dict[str, list[str]] = {}
    for line in read_json_lines(file, FinalistRow) if file.is_file() else ():
        texts.setdefault(line["candidate"], []).append(line["prediction"])
    for name in finalists:
        if name in texts:
            num_rows = len(validation_rows(prepared[name]))
            if len(texts[name]) != num_rows:
                found = f"{len(texts[name])} of {counted(num_rows, 'row')} of {name}"
                raise DataError(f"{file}: {found}. Remove the file, and rank again.")
            continue
        logger.info("predictions: %s", name)
        # Trainer would make the recipe's output_dir, and leave it empty.
        trainer = trainer_for(model(), prepared[name], output_dir=file.parent)
        texts[name] = trainer.predict_texts(validation_rows(prepared[name]))
        if PartialState().is_main_process:
            _write_predictions(texts, file)
    return {name: texts[name] for name in finalists}


def _write_predictions(texts: Mapping[str, list[str]], file: Path) -> None:
    lines = []
    for candidate, predictions in texts.items():
        for row, prediction in enumerate(predictions):
            lines.append({"candidate": candidate, "row": row, "prediction": prediction})
    write_json_lines(file, lines)


def _prompt_hint(recipe: Recipe, winner: Candidate, prepared: Prepared) -> str | None:
    """Say how to start a soft prompt from the winner's text, if all rows begin with the same text."""
    if recipe.model.api_name is not None or winner.selection == "bm25":
        return None
    if not prepared.encoder.texts.common_prefix().strip():
        return None
    settings = recipe.resolved()
    starts = [key for key in PROMPT_STARTS if key in settings]
    without = f" and take out {', '.join(starts)}" if starts else ""
    return f"to start a soft prompt from its beginning: set method: prompt_tuning and init: template{without}"


def _write_results(ranked: dict[str, Any], folder: Path) -> None:
    write_json(folder / TABLES[0], ranked)
    write_text(folder / TABLES[1], rank_text(ranked) + "\n")


def _write_winner(recipe: Recipe, winner: Candidate, hint: str | None, file: Path) -> None:
    """Write the recipe with the winner's hard prompt."""
    settings = recipe.resolved() | {
        "template": winner.template,
        "num_demonstrations": winner.num_demonstrations,
        "demonstration_selection": winner.selection,
        "seed": winner.seed,
    }
    origin = one_line(f"# {winner}: the best of `prompt-tuning rank {recipe.path}` on the validation rows.")
    advice = f"# {hint[0].upper()}{hint[1:]}.\n" if hint else ""
    write_text(file, f"{origin}\n{advice}{to_yaml(settings)}")
