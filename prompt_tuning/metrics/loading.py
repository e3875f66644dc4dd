"""Load metrics by name, and make one scoring function of several."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.errors import RecipeError, first_line
from prompt_tuning.metrics.language import language_of_script
from prompt_tuning.metrics.scores import MetricFunction, Scores
from prompt_tuning.support.files import looks_like_path
from prompt_tuning.support.text import REPLACEMENT, did_you_mean
from prompt_tuning.support.trust import load_metric_module

if TYPE_CHECKING:
    from evaluate import EvaluationModule

logger = logging.getLogger(__name__)

TASK_METRICS: dict[str, tuple[str, ...]] = {
    "translation": ("sacrebleu", "chrf"),
    "summarization": ("rouge",),
    "question_answering": ("squad",),
}
"""The metrics of a task, by the names that `load_metrics` takes."""

MAIN_METRIC: dict[str, str] = {"translation": "bleu", "summarization": "rougeL", "question_answering": "f1"}
"""The score of a task that chooses the best checkpoint. More is better."""

LOWER_IS_BETTER = ("ter",)
"""The scores of which less is better."""


@dataclass(frozen=True)
class Shipped:
    """A metric of this package.

    Args:
        folder: beside this file, with its module of `evaluate`.
        options: those that the module computes it with.
        takes_language: the language of the texts changes what it computes.
    """

    folder: str
    options: Mapping[str, str] = field(default_factory=dict)
    takes_language: bool = False


_SHIPPED = {
    "chrf": Shipped("chrf"),
    "exact_match": Shipped("exact_match"),
    "mlqa": Shipped("squad", {"script": "mlqa"}, takes_language=True),
    "rouge": Shipped("rouge", takes_language=True),
    "sacrebleu": Shipped("sacrebleu", takes_language=True),
    "squad": Shipped("squad", takes_language=True),
    "squad_v1": Shipped("squad", {"script": "v1.1"}),
    "squad_v2": Shipped("squad", {"script": "v2.0"}),
    "ter": Shipped("ter", takes_language=True),
}
"""The metrics of this package by name."""

OWN_METRICS = tuple(_SHIPPED)


def score_example_row(score: MetricFunction) -> Scores:
    """Score a made-up row, which shows the names of the metrics before anything is predicted."""
    return Scores.from_json(score(["The a."], [["a"]]))


def main_metric(task: str, scores: Scores) -> str:
    """Return the task's main metric, or the first of the scores if the main one is not among them."""
    main = MAIN_METRIC[task]
    return main if main in scores.values else next(iter(scores.values))


def direction(metric: str) -> int:
    """Return 1, or -1 for a score of which less is better, by which scores are multiplied before they are ordered."""
    return -1 if metric in LOWER_IS_BETTER else 1


def takes_language(names: Iterable[str]) -> bool:
    """Return whether the language of the texts changes what one of these metrics computes."""
    return any(name in _SHIPPED and _SHIPPED[name].takes_language for name in names)


def load_metrics(
    names: Iterable[str], *, language: str | None = None, trust_remote_code: bool = False
) -> MetricFunction:
    """Load metrics and return `score(predictions, references)`, which returns their results in one flat dict.

    Args:
        names: metrics of this package (`OWN_METRICS`), paths of `evaluate` modules on disk, or hub ids with
            their owner, such as "evaluate-metric/bertscore". Only a name with an owner is looked up on the hub, so
            that a misspelt name of this package is not.
        language: the language of the texts: ISO 639-1 with or without a region, or NLLB's codes. Only the metrics of
            this package receive it. Without it they follow the rules for English, and references in another script
            are reported once.
        trust_remote_code: run the Python code of metrics that are not of this package.

    A prediction that ends at its limit of tokens may end within a character. These bytes are not scored.

    The references of a row are a list of one or more texts. A foreign module that takes one reference a row receives
    the first. The numbers and texts that it returns are kept, and all else is dropped.

    Raises:
        RecipeError: on loading, for an unknown name, or a module that is not trusted or does not load; on scoring, if
            two metrics return different values for a key, or a module returns no number.
        ValueError: on scoring, for no rows, for unequal numbers of predictions and references, or for a value that
            is not a text.
    """
    locations = {name: _location(name) for name in names}
    modules = {}
    for name, location in locations.items():
        trusted = trust_remote_code or name in OWN_METRICS
        modules[name] = _load_module(name, location, trust_remote_code=trusted)
    reports_script = not language and takes_language(modules)

    def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | str]:
        nonlocal reports_script
        _check_rows(predictions, references)
        code = language_of_script(chain.from_iterable(references)) if reports_script else None
        if code:
            reports_script = False
            logger.warning("metrics: references are in the script of language %s. Set it, or scores may be 0.", code)
        predictions = [text.rstrip(REPLACEMENT) for text in predictions]
        result: dict[str, float | str] = {}
        sources: dict[str, str] = {}
        for name, module in modules.items():
            for key, value in _compute(name, module, predictions, references, language).to_json().items():
                if key in sources and result[key] != value:
                    raise RecipeError(
                        f"metrics {sources[key]!r} and {name!r} both give {key!r}, with different values "
                        f"({result[key]} and {value}). Name only one of them."
                    )
                result[key] = value
                sources[key] = name
        return result

    return score


def _location(name: str) -> str:
    """Turn a metric's name into the path or id that `evaluate.load` takes.

    The metrics of this package are absolute paths, for which `evaluate` does not ask the hub.
    """
    if name in OWN_METRICS:
        return str(Path(__file__).resolve().parent / _SHIPPED[name].folder)
    if Path(name).exists():
        return str(Path(name).resolve())
    if looks_like_path(name):
        raise RecipeError(f"metric {name!r}: no such file or folder (looked in {Path.cwd()}). Name another path.")
    if "/" in name:
        return name
    hint = did_you_mean(name.lower(), OWN_METRICS) or "Name another one."
    raise RecipeError(
        f"unknown metric {name!r}. {hint} Metrics are {', '.join(OWN_METRICS)}, the path of an `evaluate` module, "
        f"or a hub id with its owner, such as 'evaluate-metric/{name}'."
    )


def _load_module(name: str, location: str, *, trust_remote_code: bool) -> EvaluationModule:
    try:
        return load_metric_module(name, location, trust_remote_code=trust_remote_code)
    except (ImportError, SyntaxError, TypeError) as error:
        reason = first_line(error).rstrip(".")
        raise RecipeError(f"metric {name!r} does not load: {reason}. Correct it, or name another one.") from error
    except (FileNotFoundError, ConnectionError) as error:
        raise RecipeError(f"cannot load the metric {name!r}: {error}") from error


def _check_rows(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} rows of references: expected the same number, not 0"
        )
    for row, (text, texts) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(texts, str):
            raise ValueError(f"row {row}: the references are the string {texts!r}; expected a list of strings")
        if not all(isinstance(value, str) for value in (text, *texts)):
            raise ValueError(f"row {row}: {text!r} with the references {texts!r}; expected strings")


def _compute(
    name: str,
    module: EvaluationModule,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str | None,
) -> Scores:
    options: dict[str, str | None] = {"language": language} if takes_language([name]) else {}
    if name in OWN_METRICS:
        options |= _SHIPPED[name].options
    if _takes_one_reference(module):
        references = [texts[0] if texts else "" for texts in references]
    # A metric of this package needs no Arrow table, which takes longer to build than one row takes to score.
    compute = module._compute if name in OWN_METRICS else module.compute  # noqa: SLF001 - a module of this package
    scores = Scores.from_json(compute(predictions=list(predictions), references=list(references), **options))
    numbers = {key: float(value) for key, value in scores.values.items() if isinstance(value, Real)}
    if not numbers:
        names = ", ".join(scores.to_json())
        raise RecipeError(f"metric {name!r} gives no number, but {names}. Name a metric that gives one.")
    return Scores(numbers, scores.signatures)


def _takes_one_reference(module: EvaluationModule) -> bool:
    """Return whether every form of rows that a module accepts has a plain string as the reference."""
    from datasets import Value

    forms = module.features if isinstance(module.features, list) else [module.features]
    return all(isinstance(form.get("references"), Value) for form in forms)
