"""Score candidates by the likelihood of the targets, with successive halving (Jamieson & Talwalkar 2016).

All candidates are scored on a few rows, the better half on twice as many, and so on, until the finalists are scored on
all rows. A likelihood is the sum over a target's tokens, because one text has different tokens after different
templates. It leaves out the target's end, because a model that is not tuned ends its texts in other ways.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from prompt_tuning.engine.likelihood import target_log_likelihoods
from prompt_tuning.errors import DataError
from prompt_tuning.runs.prepare import Prepared
from prompt_tuning.studies.rank_candidates import validation_rows
from prompt_tuning.support.files import read_json_lines, write_json_lines
from prompt_tuning.support.json_types import Limits
from prompt_tuning.support.text import counted

logger = logging.getLogger(__name__)

FIRST_ROWS = 8  # All candidates are scored on at least so many rows.
# A stopped ranking loses at most so many rows: of one few-shot candidate, or of all others together.
ROWS_AT_ONCE = 16


class ScoredRow(TypedDict):
    """A row of the file of likelihoods."""

    candidate: str
    row: int
    log_likelihood: Annotated[float, Limits(finite=False)]


class LikelihoodTable:
    """The log-likelihoods so far, kept in a file so that a stopped ranking resumes.

    Args:
        file: read if it exists, and written after every addition.
        candidates: their names.
    """

    def __init__(self, file: Path, candidates: Iterable[str]) -> None:
        """Read the file, if it exists."""
        self.file = file
        self.by_candidate: dict[str, dict[int, float]] = {name: {} for name in candidates}
        for line in read_json_lines(file, ScoredRow) if file.is_file() else ():
            if line["candidate"] not in self.by_candidate:
                raise DataError(f"{file}: it has a candidate {line['candidate']}. Remove the folder, and rank again.")
            self.by_candidate[line["candidate"]][line["row"]] = line["log_likelihood"]

    def missing(self, candidates: Sequence[str], rows: Sequence[int]) -> list[tuple[str, int]]:
        """Return the pairs of candidate and row that have no score yet, row by row."""
        pairs = itertools.product(rows, candidates)
        return [(name, row) for row, name in pairs if row not in self.by_candidate[name]]

    def add(self, pairs: Sequence[tuple[str, int]], log_likelihoods: Sequence[float]) -> None:
        """Keep the log-likelihoods of pairs of candidate and row; the main process also writes them to the file."""
        for (name, row), value in zip(pairs, log_likelihoods, strict=True):
            self.by_candidate[name][row] = value
        if not PartialState().is_main_process:
            return
        lines = []
        for name, by_row in self.by_candidate.items():
            for row, value in by_row.items():
                lines.append({"candidate": name, "row": row, "log_likelihood": value})
        write_json_lines(self.file, lines)

    def scores(self, candidate: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """Return the log-likelihoods `[rows]` of a candidate, of these rows or of all that it was scored on."""
        by_row = self.by_candidate[candidate]
        return np.array([by_row[row] for row in (by_row if rows is None else rows)])

    def mean(self, candidate: str, rows: Sequence[int] | None = None) -> float:
        """Return the mean of `scores`, in nats a row."""
        return float(self.scores(candidate, rows).mean())


def halving_plan(num_candidates: int, num_rows: int, num_finalists: int) -> list[tuple[int, int]]:
    """Return how many candidates are scored on how many rows, step by step.

    The last step has the finalists on all rows.
    """
    halvings = math.ceil(math.log2(max(num_candidates / num_finalists, 1)))
    plan = []
    for step in range(halvings + 1):
        kept = max(math.ceil(num_candidates / 2**step), min(num_finalists, num_candidates))
        rows = max(math.ceil(num_rows / 2 ** (halvings - step)), min(FIRST_ROWS, num_rows))
        plan.append((kept, rows))
    return plan


def find_finalists(
    model: Callable[[], PreTrainedModel],
    prepared: Mapping[str, Prepared],
    table: LikelihoodTable,
    plan: Sequence[tuple[int, int]],
    *,
    disable_tqdm: bool | None,
) -> list[str]:
    """Score candidates step by step, and return the names of those that the last step keeps.

    Args:
        model: returns the base model. It is called only if a score is missing.
        prepared: the candidates by name.
        table: receives the log-likelihoods.
        plan: of `halving_plan`.
        disable_tqdm: show no progress bar.
    """
    with tqdm(total=_plan_size(plan), desc="likelihood", unit="row", disable=disable_tqdm) as bar:

        def score(candidates: list[str], rows: list[int]) -> None:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                part = rows[start : start + ROWS_AT_ONCE]
                for names in _read_together(candidates, prepared):
                    _add_missing(model, prepared, table, table.missing(names, part))
                    bar.update(len(part) * len(names))

        return halve(list(prepared), plan, score, table.mean)


def halve(
    candidates: list[str],
    plan: Sequence[tuple[int, int]],
    score: Callable[[list[str], list[int]], None],
    mean: Callable[[str, list[int]], float],
) -> list[str]:
    """Return the candidates that the last step of a plan keeps.

    Args:
        candidates: their names.
        plan: of `halving_plan`.
        score: scores candidates on rows that they have no score for.
        mean: returns the score of a candidate on rows; a higher one is better.
    """
    num_rows = plan[-1][1]
    # Neighbours in a file are often about one passage, so the first rows would not stand for all.
    order = random.Random(0).sample(range(num_rows), num_rows)
    scored = 0
    for kept, reach in plan:
        if scored:
            means = {name: mean(name, order[:scored]) for name in candidates}
            candidates = sorted(candidates, key=means.__getitem__, reverse=True)[:kept]
        logger.info("scores: %s on %s of %s", counted(len(candidates), "candidate"), reach, counted(num_rows, "row"))
        score(candidates, order[scored:reach])
        scored = reach
    return candidates


def _plan_size(plan: Sequence[tuple[int, int]]) -> int:
    """Return how many pairs of candidate and row a plan scores."""
    size = scored = 0
    for kept, reach in plan:
        size += kept * (reach - scored)
        scored = reach
    return size


def _read_together(names: Sequence[str], prepared: Mapping[str, Prepared]) -> list[list[str]]:
    """Group candidates whose rows are read in one batch.

    Candidates without demonstrations may begin with the row's passage, which is then read once. A candidate with
    demonstrations shares its beginning with no other candidate.
    """
    zero_shot = []
    few_shot = []
    for name in names:
        if prepared[name].recipe.prompt.num_demonstrations:
            few_shot.append([name])
        else:
            zero_shot.append(name)
    return [zero_shot, *few_shot]


def _add_missing(
    model: Callable[[], PreTrainedModel],
    prepared: Mapping[str, Prepared],
    table: LikelihoodTable,
    pairs: Sequence[tuple[str, int]],
) -> None:
    """Compute the log-likelihoods of pairs of candidate and row, if there are any; each process computes a part."""
    if not pairs:
        return
    places = [(validation_rows(prepared[name]), row) for name, row in pairs]
    with PartialState().split_between_processes(places) as part:
        log_likelihoods = log_likelihoods_without_end(model(), part) if part else []
    table.add(pairs, gather_object(log_likelihoods))


def log_likelihoods_without_end(model: PreTrainedModel, places: Sequence[tuple[Dataset, int]]) -> list[float]:
    """Return the log-likelihood of each row's target without its end, in nats.

    Args:
        model: a base model, causal or encoder-decoder.
        places: data sets of encoded rows and a row's number in each.
    """
    causal = not model.config.is_encoder_decoder
    end = model.config.eos_token_id
    start = None
    rows = []
    for encoded, number in places:
        ids, labels = encoded[number]["input_ids"], encoded[number]["labels"]
        kept = len(labels) - 1 if causal or end not in labels else labels.index(end)
        if kept < len(labels) - 1:  # mBART writes its language after the end, and starts with it.
            start = labels[-1]
        # In a causal model input_ids hold source and target, so both lists lose the end.
        rows.append({"input_ids": ids[:kept] if causal else ids, "labels": labels[:kept]})
    sums, _ = target_log_likelihoods(model, Dataset.from_list(rows), start)
    return sums.tolist()
