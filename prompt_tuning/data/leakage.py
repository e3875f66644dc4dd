"""Find rows of an evaluated split that are also in the training split: with them a score says less than it seems to.

Rows are compared by what the template prints of them in their source (`Template.source_key`), value by value. Exact:
every value is equal without case and white space. Near: in every value the runs of three words have a Jaccard index of
at least 0.6. So a passage with another question does not make the row a leak. If the template reads a `context`, such
rows are counted separately.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from datasets import Dataset, DatasetDict

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.loading import row_origin
from prompt_tuning.errors import EmptyRowError, TemplateError
from prompt_tuning.support.text import agreed, counted, normalised, words
from prompt_tuning.templates.template import Template

logger = logging.getLogger(__name__)

SHINGLE = 3
"""The number of words in a run."""

NEAR = 0.6
"""The Jaccard index from which two texts are near."""

USUAL_CANDIDATES = 20
"""The number of evaluated rows that a training row is compared with, whatever that costs."""

MAX_COMPARED = 50_000_000
"""The most runs of words that all other comparisons take. Rows of a few phrases are candidates of each other."""

FIRST = 5
"""The number of rows of each kind that results.json lists."""

SHOWN = 3
"""The number of rows of each kind that the log shows."""

KINDS = {
    "same_target": "are in the training split with the same target",
    "other_target": "are in the training split with another target",
    "near": "are nearly in the training split",
    "demonstrated": "have the source of a demonstration",
    "initial_text": "are in init_text",
}
"""What the log says of each list of rows."""

Source = tuple[str, ...]
"""The values of a row that the template prints in its source, as rows are compared."""

Pairs = tuple[tuple[int, int], ...]
"""(row, training row), numbered from 0."""

TargetsOf = dict[Source, dict[str, int]]
"""For the source of every evaluated row, the targets of training rows with that source and the first row of each."""


@dataclass(frozen=True)
class Leaks:
    """The rows of a split that are also somewhere else. A row is in at most one of the first three lists.

    Args:
        rows: the number of rows of the split.
        same_target: rows with the source and the target of a training row.
        other_target: rows with the source of a training row and another target.
        near: rows whose source is near that of a training row.
        shared_passages: the number of other rows with the `context` of a training row; None without such a column.
        demonstrated: rows with the source of a demonstration.
        initial_text: rows whose source is in the text that the soft prompt starts from.
    """

    rows: int
    same_target: Pairs = ()
    other_target: Pairs = ()
    near: Pairs = ()
    shared_passages: int | None = None
    demonstrated: tuple[int, ...] = ()
    initial_text: tuple[int, ...] = ()

    def lists(self) -> dict[str, tuple]:
        """Return the lists of rows by their names."""
        lists = asdict(self)
        del lists["rows"], lists["shared_passages"]
        return lists

    def facts(self) -> dict[str, Any]:
        """Return for results.json the length of every list, and its first rows, numbered as in predictions/."""
        counts = asdict(self)
        first = {}
        for name, rows in self.lists().items():
            counts[name] = len(rows)
            if rows:
                first[name] = list(rows[:FIRST])
        return counts | ({"first": first} if first else {})


def count_leaks(
    template: Template,
    languages: dict[str, str] | None,
    rows: DatasetDict,
    loaded: DatasetDict,
    data: DataArguments,
    *,
    initial_text: str | None,
) -> dict[str, dict[str, Any]]:
    """Compare every evaluated split with the training split, the demonstrations and init_text, and log what is found.

    Args:
        template: the template, with the demonstrations that every row is shown.
        languages: `language_variables(...)`, for a translation.
        rows: the splits that are prepared.
        loaded: `rows`, and the training rows if demonstrations are chosen from them.
        data: names the files, for the log.
        initial_text: the text that the soft prompt starts from.

    Returns:
        By split the facts of `Leaks` for results.json, with None for what could not be compared without training rows.
    """
    train = None if data.streaming else loaded.get("train")
    if "train" in loaded and train is None:
        logger.warning("train: a stream, whose rows are not compared with those of other splits")
    facts = {}
    for split in rows:
        if split == "train":
            continue
        leaks = find_leaks(template, languages, rows[split], train, initial_text)
        for line in _leak_lines(data, split, leaks):
            logger.warning("%s: %s", split, line)
        if train is not None and not (leaks.same_target or leaks.other_target or leaks.near):
            logger.info("%s: none of its %s is in the training split", split, counted(leaks.rows, "row"))
        facts[split] = leaks.facts()
        if "train" not in loaded:
            facts[split] |= {"same_target": None, "other_target": None, "near": None}
    return facts


def _leak_lines(data: DataArguments, split: str, leaks: Leaks) -> list[str]:
    """Return a line for the log for every list of rows that is not empty."""
    lines = []
    for name, rows in leaks.lists().items():
        if not rows:
            continue
        shown = []
        for numbers in rows[:SHOWN]:
            row, *training_row = numbers if isinstance(numbers, tuple) else (numbers,)
            origins = [row_origin(data, split, row)]
            origins += [row_origin(data, "train", number) for number in training_row]
            shown.append(" = ".join(origins))
        if len(rows) > SHOWN:
            shown.append(f"{len(rows) - SHOWN} more")
        lines.append(
            f"{len(rows)} of {counted(leaks.rows, 'row')} {agreed(len(rows), KINDS[name])} ({'; '.join(shown)})"
        )
    if leaks.shared_passages:
        question = agreed(leaks.shared_passages, "ask something else about a training row's context")
        lines.append(f"{leaks.shared_passages} of {counted(leaks.rows, 'row')} {question}")
    return lines


def find_leaks(
    template: Template,
    languages: dict[str, str] | None,
    rows: Dataset,
    train: Dataset | None = None,
    initial_text: str | None = None,
) -> Leaks:
    """Compare an evaluated split with the training split, in time that grows with the rows and not with their pairs.

    Training rows are read one by one and are not kept, because there may be many.

    Args:
        template: the template, with the demonstrations that every row is shown.
        languages: `language_variables(...)`, for a translation.
        rows: the evaluated split.
        train: the training rows; without them only demonstrations and the initial text are compared.
        initial_text: the text that the soft prompt starts from.
    """
    sources = [template.source_key(row, languages) for row in rows]
    demonstrations = {template.source_key(row, languages) for row in template.demonstrations}
    text = _spaced(normalised(initial_text or ""))
    demonstrated: list[int] = []
    initial: list[int] = []
    targets_of: TargetsOf = {}
    for number, source in enumerate(sources):
        targets_of[source] = {}
        if source in demonstrations:
            demonstrated.append(number)
        if initial_text and _is_in(source, text):
            initial.append(number)
    if train is None:
        return Leaks(len(rows), demonstrated=tuple(demonstrated), initial_text=tuple(initial))

    near_rows = nearest_sources(_training_sources(template, languages, train, targets_of), targets_of)
    same: list[tuple[int, int]] = []
    other: list[tuple[int, int]] = []
    near: list[tuple[int, int]] = []
    for number, source in enumerate(sources):
        targets = targets_of[source]
        target = _target(template, rows[number], languages) if targets else ""
        if target in targets:
            same.append((number, targets[target]))
        elif targets and target:
            other.append((number, min(targets.values())))
        elif source in near_rows and not targets:
            near.append((number, near_rows[source]))
    passages = None
    if "context" in template.source_columns:
        leaked = {number for number, _ in (*same, *other, *near)}
        passages = _shared_passages(rows, train, leaked)
    return Leaks(len(rows), tuple(same), tuple(other), tuple(near), passages, tuple(demonstrated), tuple(initial))


def _training_sources(
    template: Template, languages: dict[str, str] | None, train: Dataset, targets_of: TargetsOf
) -> Iterator[Source]:
    """Yield the source of every training row, () if the template cannot print it, and fill `targets_of`."""
    for number, row in enumerate(train):
        try:
            source = template.source_key(row, languages)
            target = _target(template, row, languages) if source in targets_of else ""
            if target:
                targets_of[source].setdefault(target, number)
        except TemplateError:
            # Training rows that are only demonstrations were not checked.
            source = ()
        yield source


def nearest_sources(training: Iterable[Source], evaluated: Iterable[Source]) -> dict[Source, int]:
    """Return the place of the first training source that an evaluated source is near to, for those near to any.

    Two sets with a Jaccard index of at least t share one of the n - ceil(t n) + 1 rarest members of each (prefix
    filtering, Chaudhuri et al. 2006), so that rows are never compared because they share frequent words. Candidates
    come from the value that differs most among the evaluated sources: the question, if rows share passages. After
    MAX_COMPARED the other training sources are left out, with a warning.

    Args:
        training: sources; () is near to none.
        evaluated: sources with as many values.
    """
    evaluated = list(evaluated)
    if not evaluated:
        return {}
    value = _most_different_value(evaluated)
    shingles = [list(map(_shingles, source)) for source in evaluated]
    counts: Counter[tuple[str, ...]] = Counter()
    for texts in shingles:
        counts.update(texts[value])
    index = defaultdict(list)
    for number, texts in enumerate(shingles):
        for shingle in _rarest(texts[value], counts):
            index[shingle].append(number)
    places: dict[int, int] = {}
    left = MAX_COMPARED
    for place, source in enumerate(training):
        rarest = _rarest(_shingles(source[value]), counts) if source else []
        candidates = set(chain.from_iterable(index.get(shingle, ()) for shingle in rarest)) - places.keys()
        if candidates:
            texts = list(map(_shingles, source))
            left -= max(0, len(candidates) - USUAL_CANDIDATES) * sum(map(len, texts))
            if left < 0:
                logger.warning(
                    "near rows were looked for only in the first %d training rows: too many share words", place
                )
                deque(training, maxlen=0)  # Reading the others finds those that are equal.
                break
            for number in candidates:
                if _alike(texts, shingles[number]):
                    places[number] = place
    return {evaluated[number]: place for number, place in places.items()}


def _most_different_value(sources: list[Source]) -> int:
    """Return the place of the value that has the most different texts."""
    counts = [len(set(texts)) for texts in zip(*sources, strict=False)]
    return counts.index(max(counts))


def _rarest(members: set[tuple[str, ...]], counts: Counter) -> list[tuple[str, ...]]:
    """Return those of the rarest members that any evaluated row has; members that none has are rarer still."""
    occurring = [member for member in members if member in counts]
    length = len(members) - math.ceil(NEAR * len(members)) + 1 - (len(members) - len(occurring))
    return sorted(occurring, key=lambda member: (counts[member], member))[: max(length, 0)]


def _shingles(text: str) -> set[tuple[str, ...]]:
    """Return the runs of three words; a shorter text is one run."""
    tokens = words(text) or text.split()
    if len(tokens) < SHINGLE:
        return {tuple(tokens)}
    return set(zip(*(tokens[start:] for start in range(SHINGLE)), strict=False))


def _alike(first: list[set], second: list[set]) -> bool:
    """Return True if all values of two sources are near."""
    if len(first) != len(second):
        return False
    return all(len(a & b) >= NEAR * len(a | b) for a, b in zip(first, second, strict=True))


def _shared_passages(rows: Dataset, train: Dataset, leaked: set[int]) -> int:
    """Return the number of rows, without those that leak, whose context is that of a training row."""
    passages = {normalised(text) for text in train["context"] if isinstance(text, str)}
    count = 0
    for number, text in enumerate(rows["context"]):
        count += number not in leaked and isinstance(text, str) and normalised(text) in passages
    return count


def _target(template: Template, row: dict[str, Any], languages: dict[str, str] | None) -> str:
    """Return a row's target as rows are compared; nothing for a row without one, which `drop_empty` leaves out."""
    try:
        return normalised(template.render_target(row, languages)[0])
    except EmptyRowError:
        return ""


def _spaced(text: str) -> str:
    """Return the words of a text with a space around each, so that words are found whole."""
    return f" {' '.join(words(text))} "


def _is_in(source: Source, text: str) -> bool:
    """Return True if all values of a source that have words are in a spaced text."""
    values = list(filter(str.strip, map(_spaced, source)))
    return bool(values) and all(value in text for value in values)
