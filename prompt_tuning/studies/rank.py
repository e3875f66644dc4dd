"""Which hard prompt is best for a model: templates x numbers of demonstrations x seeds, on the same validation rows.

First by the likelihood of the targets, which needs no generation, with successive halving (Jamieson & Talwalkar 2016):
all candidates are scored on a few rows, the better half on twice as many, and so on, until the finalists are scored on
all. Then by the task's metric of what the model writes, for the finalists alone. A likelihood is the sum over a
target's tokens, since templates lead to different tokens of one text, and without its end, which a model that was not
tuned writes in other ways. Candidates of one row are read together, so that a passage they open with is read once.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.engine.dispatch import autocast_dtype, autocasting
from prompt_tuning.engine.likelihood import target_log_likelihoods
from prompt_tuning.errors import DataError, PromptTuningError, RecipeError, first_line
from prompt_tuning.metrics.loading import MAIN_METRIC, score_example_row
from prompt_tuning.metrics.significance import DRAWS, corpus_significance, difference, interval, row_scores
from prompt_tuning.models.loading import load_base_model
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import Recipe, changed_settings
from prompt_tuning.runs.evaluate import trainer_for
from prompt_tuning.runs.fingerprints import rows_fingerprint, weights_fingerprint
from prompt_tuning.runs.prepare import Prepared, prepare, score_of
from prompt_tuning.studies.rank_table import rank_text
from prompt_tuning.support.files import atomic_write, read_json, read_json_lines, write_json, write_json_lines
from prompt_tuning.support.yaml_files import to_yaml
from prompt_tuning.templates.template import Template, load_templates

logger = logging.getLogger(__name__)

LIKELIHOODS, PREDICTIONS = "likelihoods.jsonl", "predictions.jsonl"
FIRST_ROWS = 8  # on which at least all candidates are scored
# Settings that scores depend on, beside the model's, decoding and what the rows' tokens tell.
SCORE_SETTINGS = {
    "task", "lang", "target_lang", "metrics", "choice_normalization", "bf16", "fp16", "tf32",
}  # fmt: skip
ROWS_AT_ONCE = 16  # so many of one few-shot candidate, or of all others, are lost where a rank is stopped

Known = dict[str, dict[int, float]]  # of each candidate the log-likelihood of each row that it was scored on


@dataclass(frozen=True)
class Candidate:
    template: str
    num_demonstrations: int
    seed: int
    selection: str

    def __str__(self) -> str:
        drawn = f", seed {self.seed}" if self.selection != "bm25" else ""
        return f"{self.template}, {self.num_demonstrations} shown{drawn}" if self.num_demonstrations else self.template


def rank(
    path: str,
    overrides: list[str],
    folder: Path,
    templates: list[str] | None = None,
    counts: list[int] | None = None,
    seeds: list[int] | None = None,
    rows: int | None = None,
    finalists: int = 3,
) -> dict[str, Any]:
    """Score what has not been scored, and write rank.json, rank.md and winner.yaml, a recipe.

    Args:
        overrides: flags of the recipe.
        templates: as `load_templates` takes them; by default the recipe's own and all that are shipped for its task,
            but those that are answered by choosing.
        counts: numbers of demonstrations; by default the recipe's.
        seeds: that demonstrations are drawn with; by default the recipe's.
        rows: the first validation rows, instead of all.
        finalists: how many candidates write predictions.

    Raises:
        RecipeError: nothing to rank, or the folder holds a rank with other settings.
    """
    flags = [f"--num_demonstrations={max(counts)}"] if counts else []
    if counts and not max(counts):
        flags.append("--demonstration_selection=random")  # of which the recipe's is one that none are chosen by
    recipe = load_recipe(path, [*overrides, *flags])
    if METHODS[recipe.prompt.method].trains_several_tasks:
        raise RecipeError(f"{path}: rank is for one task; name one of {', '.join(recipe.prompt.tasks)}")
    metric = _metric(recipe)
    names, left_out = _templates(recipe, templates)
    counts, seeds = counts or [recipe.prompt.num_demonstrations], seeds or [recipe.training.seed]
    candidates = {str(each): each for each in _candidates(recipe, names, counts, seeds)}
    if not candidates:
        raise RecipeError("\n".join([f"{path}: no template could be ranked", *dict.fromkeys(left_out.values())]))
    prepared, unfit = _prepared(recipe, candidates, rows)
    left_out |= unfit
    _check_settings(folder, recipe, prepared, finalists)

    @functools.cache
    def model() -> PreTrainedModel:
        config = next(iter(prepared.values())).config
        return load_base_model(recipe.model, config).to(recipe.training.device)

    args = recipe.training
    with autocasting(args.device.type, autocast_dtype(vars(args))):  # as predictions are
        known, plan, last = _halve(model, prepared, folder / LIKELIHOODS, finalists, args.disable_tqdm)
    texts = _predictions(model, {name: prepared[name] for name in last}, folder / PREDICTIONS)
    ranked = {"metric": metric, "rows": len(_rows(next(iter(prepared.values()))))}
    ranked |= _facts(prepared, known, texts, metric) | {"halving": plan, "left_out": left_out}
    winner = candidates[ranked["winner"]]
    ranked["next"] = _write_recipe(recipe, winner, prepared[ranked["winner"]], folder / "winner.yaml")
    write_json(folder / "rank.json", ranked)
    with atomic_write(folder / "rank.md") as file:
        file.write(rank_text(ranked) + "\n")
    return ranked


def _metric(recipe: Recipe) -> str:
    metric, given = MAIN_METRIC[recipe.data.task], score_example_row(score_of(recipe)).values
    if metric not in given:
        raise RecipeError(f"metrics give {', '.join(given)}, and rank goes by {metric}; leave metrics out")
    return metric


def _templates(recipe: Recipe, wanted: list[str] | None) -> tuple[list[str], dict[str, str]]:
    """Names of the templates to rank; and of those that are not, why."""
    found = {recipe.prompt.template: Template.load(recipe.prompt.template)} if not wanted else {}
    for where in wanted or [recipe.data.task]:
        found |= load_templates(where)
    left_out = {name: str(error) for name, error in found.items() if not isinstance(error, Template)}
    for name, template in found.items():
        closed = name not in left_out and template.answer_choices and recipe.prompt.score_choices
        if closed and not wanted and name != recipe.prompt.template:
            left_out[name] = "it is answered by choosing, not by writing; name it in --templates to rank it"
    return [name for name in found if name not in left_out], left_out


def _candidates(recipe: Recipe, names: list[str], counts: list[int], seeds: list[int]) -> list[Candidate]:
    """One for each template, number and seed; where a seed draws nothing, only one of them."""
    drawn = recipe.prompt.demonstration_selection
    candidates = []
    for name in names:
        for count in counts:
            selection = drawn if count else "random"
            of_count = seeds if count and selection != "bm25" else seeds[:1]
            candidates += [Candidate(name, count, seed, selection) for seed in of_count]
    return candidates


def _prepared(
    recipe: Recipe, candidates: dict[str, Candidate], rows: int | None
) -> tuple[dict[str, Prepared], dict[str, str]]:
    """The validation rows as each candidate writes them; and for those that do not fit, why."""
    prepared: dict[str, Prepared] = {}
    unfit: dict[str, str] = {}
    for name, candidate in candidates.items():
        logger.info("%s", name)
        try:
            made = prepare(_of_candidate(recipe, candidate, rows), ("validation",))
        except PromptTuningError as error:
            unfit[name] = first_line(error)
            continue
        first = next(iter(prepared), name)
        if prepared and list(_rows(made)["references"]) != list(_rows(prepared[first])["references"]):
            unfit[name] = f"it counts other texts as right than {first}"
        elif prepared and _targets(made) != _targets(prepared[first]):
            unfit[name] = f"it has other targets than {first}, so that their likelihoods tell nothing; rank it alone"
        else:
            prepared[name] = made
    if not prepared:
        reasons = dict.fromkeys(unfit.values())
        raise RecipeError("\n".join([f"{recipe.path}: no template could be ranked", *reasons]))
    return prepared, unfit


def _of_candidate(recipe: Recipe, candidate: Candidate, rows: int | None = None) -> Recipe:
    """The recipe of a candidate's hard prompt alone."""
    prompt = replace(
        recipe.prompt,
        method="none",
        template=candidate.template,
        num_demonstrations=candidate.num_demonstrations,
        demonstration_selection=candidate.selection,
    )
    limits = [limit for limit in (rows, recipe.data.max_eval_samples) if limit is not None]
    data = replace(recipe.data, max_eval_samples=min(limits, default=None))
    training = copy.copy(recipe.training)
    training.seed = candidate.seed
    return replace(recipe, data=data, prompt=prompt, training=training)


def _rows(prepared: Prepared) -> Dataset:
    return prepared.encoded["validation"]


def _targets(prepared: Prepared) -> list[str]:
    encoder = prepared.encoder
    return [encoder.template.render_target(row, encoder.languages)[0] for row in prepared.rows["validation"]]


def _check_settings(folder: Path, recipe: Recipe, prepared: dict[str, Prepared], finalists: int) -> None:
    """Keep what the scores in a folder depend on; raise RecipeError where those of another rank lie there."""
    resolved = replace(recipe, prompt=replace(recipe.prompt, method="none")).resolved()
    settings = {key: value for key, value in resolved.items() if key in vars(recipe.model).keys() | SCORE_SETTINGS}
    settings |= {"decoding": recipe.decoding, "finalists": finalists}
    settings["weights"] = weights_fingerprint(recipe.model.model_name_or_path, recipe.model.model_revision)
    settings["candidates"] = {
        name: rows_fingerprint(_rows(each), each.template.stop) for name, each in prepared.items()
    }
    file, settings = folder / "settings.json", json.loads(json.dumps(settings))
    try:
        saved = read_json(file) if file.is_file() else {}
    except DataError:
        saved = None
    scored = any((folder / name).is_file() for name in (LIKELIHOODS, PREDICTIONS))
    if not isinstance(saved, dict) or (scored and not saved):
        raise RecipeError(
            f"{file}: {'damaged' if file.is_file() else 'not there'}, so that nothing says what the scores beside it "
            f"are of; remove the folder {folder}, or name another --output_dir"
        )
    if saved and (changed := changed_settings(saved, settings)):
        raise RecipeError(
            f"{folder} holds a rank with other settings or rows ({', '.join(changed)}); remove it, or name another "
            "--output_dir"
        )
    write_json(file, settings)


def halving_plan(candidates: int, rows: int, finalists: int) -> list[tuple[int, int]]:
    """How many candidates are scored on how many rows, step by step; the last step is the finalists on all."""
    halvings = math.ceil(math.log2(max(candidates / finalists, 1)))
    plan = []
    for step in range(halvings + 1):
        kept = max(math.ceil(candidates / 2**step), min(finalists, candidates))
        plan.append((kept, max(math.ceil(rows / 2 ** (halvings - step)), min(FIRST_ROWS, rows))))
    return plan


def _halve(
    model: Callable[[], PreTrainedModel],
    prepared: dict[str, Prepared],
    file: Path,
    finalists: int,
    disable_tqdm: bool,
) -> tuple[Known, list[tuple[int, int]], list[str]]:
    """Log-likelihoods, the halving's plan, and the names of the finalists."""
    known: Known = {name: {} for name in prepared}
    for line in _lines(file):
        known[line["candidate"]][line["row"]] = line["log_likelihood"]
    count = len(_rows(next(iter(prepared.values()))))
    # Neighbours in a file are often about one passage, so that its first rows stand for fewer than they are.
    order = random.Random(0).sample(range(count), count)
    plan, alive, seen = halving_plan(len(prepared), count, finalists), list(prepared), 0
    total = sum(kept * (reach - before) for (_, before), (kept, reach) in itertools.pairwise([(0, 0), *plan]))
    bar = tqdm(total=total, desc="likelihood", unit="row", disable=disable_tqdm)
    for kept, reach in plan:
        if seen:
            alive = sorted(alive, key=lambda name: -np.mean([known[name][row] for row in order[:seen]]))[:kept]
        logger.info("likelihood: %s candidates on %s of %s rows", len(alive), reach, count)
        for start in range(seen, reach, ROWS_AT_ONCE):
            rows = order[start : min(start + ROWS_AT_ONCE, reach)]
            for names in _read_together(alive, prepared):
                if wanted := [(name, row) for row in rows for name in names if row not in known[name]]:
                    found = _log_likelihoods(model(), [(_rows(prepared[name]), row) for name, row in wanted])
                    for (name, row), value in zip(wanted, found, strict=True):
                        known[name][row] = value
                    _write_known(known, file)
                bar.update(len(rows) * len(names))
        seen = reach
    bar.close()
    return known, plan, alive


def _read_together(names: list[str], prepared: dict[str, Prepared]) -> list[list[str]]:
    """All zero-shot candidates, which may open with the row's passage; a few-shot one shares its opening with none."""
    shown = [name for name in names if prepared[name].recipe.prompt.num_demonstrations]
    return [[name for name in names if name not in shown], *([name] for name in shown)]


def _write_known(known: Known, file: Path) -> None:
    lines = (
        {"candidate": name, "row": row, "log_likelihood": value}
        for name, of_name in known.items()
        for row, value in of_name.items()
    )
    write_json_lines(file, lines)


def _log_likelihoods(model: PreTrainedModel, places: Sequence[tuple[Dataset, int]]) -> list[float]:
    """The log-likelihood of each row's target without its end.

    Args:
        places: data sets and numbers of rows in them.
    """
    causal, end, rows = not model.config.is_encoder_decoder, model.config.eos_token_id, []
    start = None
    for encoded, number in places:
        ids, labels = encoded[number]["input_ids"], encoded[number]["labels"]
        kept = len(labels) - 1 if causal or end not in labels else labels.index(end)
        if kept < len(labels) - 1:  # mBART writes its language behind the end, and opens with it
            start = labels[-1]
        rows.append({"input_ids": ids[:kept] if causal else ids, "labels": labels[:kept]})  # a causal row has both
    sums, _ = target_log_likelihoods(model, Dataset.from_list(rows), start)
    return sums.tolist()


def _predictions(
    model: Callable[[], PreTrainedModel], finalists: dict[str, Prepared], file: Path
) -> dict[str, list[str]]:
    """What the model writes for all rows, finalist by finalist."""
    texts: dict[str, list[str]] = {}
    for line in _lines(file):
        texts.setdefault(line["candidate"], []).append(line["prediction"])
    for name, prepared in finalists.items():
        if name in texts:
            continue
        logger.info("predictions: %s", name)
        texts[name] = trainer_for(model(), prepared).predict_texts(_rows(prepared))
        write_json_lines(
            file,
            (
                {"candidate": each, "row": row, "prediction": text}
                for each, of_each in texts.items()
                for row, text in enumerate(of_each)
            ),
        )
    return {name: texts[name] for name in finalists}


def _lines(file: Path) -> list[dict[str, Any]]:
    return read_json_lines(file) if file.is_file() else []


def _facts(prepared: dict[str, Prepared], known: Known, texts: dict[str, list[str]], metric: str) -> dict[str, Any]:
    """For each candidate, the winner first, its scores with intervals, and its paired differences from the winner."""
    first = next(iter(prepared.values()))
    references = list(_rows(first)["references"])
    scores = {name: float(first.score(of_name, references)[metric]) for name, of_name in texts.items()}
    likelihoods = {name: float(np.mean([*of_name.values()])) for name, of_name in known.items()}
    # Of finalists with one score the likelier; then those that were scored on more rows.
    best = sorted(scores, key=lambda name: (-scores[name], -likelihoods[name]))
    rest = sorted(known.keys() - scores.keys(), key=lambda name: (-len(known[name]), -likelihoods[name], name))
    tests = _metric_tests({name: texts[name] for name in best}, references, first, metric)
    facts = {}
    for name in [*best, *rest]:
        of_rows = np.array([list(known[name].values())])
        low, high = interval(of_rows)
        facts[name] = {
            "rows": len(known[name]),
            "log_likelihood": {"mean": likelihoods[name], "low": low, "high": high},
        }
        if name != best[0]:
            of_winner = np.array([[known[best[0]][row] for row in known[name]]])
            facts[name]["log_likelihood"] |= {"against_winner": difference(of_rows, of_winner)}
        if lacking := prepared[name].reports["validation"].rows_with_fewer_demonstrations:
            facts[name]["lacking_rows"] = lacking
        if name in scores:
            facts[name][metric] = {"score": scores[name]} | tests["of"][name]
    return {"winner": best[0], "test": tests["test"], "candidates": facts}


def _metric_tests(
    texts: dict[str, list[str]], references: list[list[str]], prepared: Prepared, metric: str
) -> dict[str, Any]:
    """For each finalist the interval of its score, and but for the first its `p` against that one."""
    rows = {name: row_scores(prepared.score, metric, of_name, references) for name, of_name in texts.items()}
    winner = next(iter(texts))
    if any(each is None for each in rows.values()):
        alone = {winner: {}}  # sacreBLEU tests two or more
        language = prepared.recipe.data.metric_language
        of = corpus_significance(metric, texts, references, language) if len(texts) > 1 else alone
        return {"test": "sacreBLEU's paired bootstrap", "of": of}
    of = {}
    for name, each in rows.items():
        low, high = interval(each[None])
        of[name] = {"low": low, "high": high}
        if name != winner:
            of[name]["against_winner"] = difference(each[None], rows[winner][None])
            of[name]["p"] = of[name]["against_winner"]["p"]
    return {"test": f"{DRAWS} draws of rows", "of": of}


def _write_recipe(recipe: Recipe, winner: Candidate, prepared: Prepared, file: Path) -> str | None:
    """The recipe with the winner's hard prompt; returns how to start a soft prompt at it, if it has an opening."""
    values = recipe.resolved() | {
        "template": winner.template,
        "num_demonstrations": winner.num_demonstrations,
        "demonstration_selection": winner.selection,
        "seed": winner.seed,
    }
    hint = None
    if winner.selection != "bm25" and prepared.encoder.common_prefix().strip():
        starts = [
            key
            for key in ("adapter", "init_text", "init_labels", "init_adapter", "num_virtual_tokens")
            if key in values
        ]
        without = f" and take out {', '.join(starts)}" if starts else ""
        hint = f"to start a soft prompt at its opening: set method: prompt_tuning and init: template{without}"
    with atomic_write(file) as opened:
        opened.write(f"# {winner}: the best of `prompt-tuning rank {recipe.path}` on the validation rows.\n")
        opened.write(f"# {hint[0].upper()}{hint[1:]}.\n" if hint else "")
        opened.write(to_yaml(values))
    return hint
