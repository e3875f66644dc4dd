"""Rows of an evaluated split that also stand in the training split: then a score says less than it seems to.

Rows are compared by what the template prints of them in their source (`Template.source_key`), value by value. Exact:
every value is equal without case and white space. Near: in every value the runs of three words have a Jaccard index of
at least 0.6. So a passage that comes again with another question is no leak of the row; such rows are counted apart,
where the template reads a `context`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from datasets import Dataset, DatasetDict

from prompt_tuning.arguments.arguments import DataArguments
from prompt_tuning.data.loading import row_origin
from prompt_tuning.errors import TemplateError
from prompt_tuning.support.text import normalised, words
from prompt_tuning.templates.template import Template

logger = logging.getLogger(__name__)

SHINGLE = 3
NEAR = 0.6
FIRST = 5
SHOWN = 3


Source = tuple[str, ...]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Leaks:
    """What of a split stands elsewhere too. Pairs are (row, training row), from 0; a row is in one of the first three.

    Args:
        same_target: source and target are those of a training row.
        other_target: the source is, the target is not.
        near: the source nearly is.
        shared_passages: rows in none of these whose `context` is that of a training row; None without such a column.
        demonstrated: rows whose source is that of a demonstration.
        initial_text: rows whose source stands in the text that the soft prompt starts from.
    """

    rows: int
    same_target: Pairs = ()
    other_target: Pairs = ()
    near: Pairs = ()
    shared_passages: int | None = None
    demonstrated: tuple[int, ...] = ()
    initial_text: tuple[int, ...] = ()

    def lists(self) -> dict[str, tuple]:
        return {name: value for name, value in asdict(self).items() if isinstance(value, tuple)}

    def facts(self) -> dict[str, Any]:
        """For results.json: how many of each, and the first of them, numbered as in predictions/."""
        counts = {name: len(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        first = {name: [*value[:FIRST]] for name, value in self.lists().items() if value}
        return counts | ({"first": first} if first else {})


def count_leaks(
    template: Template,
    languages: dict[str, str] | None,
    rows: DatasetDict,
    loaded: DatasetDict,
    data: DataArguments,
    initial_text: str | None = None,
) -> dict[str, dict[str, Any]]:
    """What of each evaluated split stands in the training split, a demonstration or init_text too, said in the log.

    Args:
        loaded: `rows`, and the training rows where demonstrations are chosen from them.

    Returns:
        For results.json, by split what `Leaks.facts` says; None where no training rows were read to compare with.
    """
    train = loaded.get("train") if not data.streaming else None
    if "train" in loaded and train is None:
        logger.warning("train: a stream, whose rows are not compared with those of other splits")
    found = {
        split: find_leaks(template, languages, rows[split], train, initial_text) for split in rows if split != "train"
    }
    for split, leaks in found.items():
        for line in _leak_lines(data, split, leaks):
            logger.warning("%s: %s", split, line)
        if train is not None and not (leaks.same_target or leaks.other_target or leaks.near):
            logger.info("%s: none of its %s rows stands in the training split too", split, leaks.rows)
    unknown = dict.fromkeys(("same_target", "other_target", "near")) if "train" not in loaded else {}
    return {split: leaks.facts() | unknown for split, leaks in found.items()}


def _leak_lines(data: DataArguments, split: str, leaks: Leaks) -> list[str]:
    said = {
        "same_target": "stand in the training split with the same target",
        "other_target": "stand in the training split with another target",
        "near": "are nearly those of the training split",
        "demonstrated": "have the source of a demonstration",
        "initial_text": "stand in init_text",
    }
    lines = []
    for name, rows in leaks.lists().items():
        shown = []
        for numbers in rows[:SHOWN]:
            row, *training_row = numbers if isinstance(numbers, tuple) else (numbers,)
            places = [(split, row), *(("train", each) for each in training_row)]
            shown.append(" = ".join(row_origin(data, *place) for place in places))
        if rows:
            more = f"; {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
            lines.append(f"{len(rows)} of {leaks.rows} rows {said[name]} ({'; '.join(shown)}{more})")
    if leaks.shared_passages:
        lines.append(f"{leaks.shared_passages} of {leaks.rows} rows ask something else about a training row's context")
    return lines


def find_leaks(
    template: Template,
    languages: dict[str, str] | None,
    rows: Dataset,
    train: Dataset | None = None,
    initial_text: str | None = None,
) -> Leaks:
    """Compare an evaluated split, in time that grows with the number of rows and not with that of pairs.

    Training rows are read one by one, and none is kept: there may be many.

    Args:
        template: with the demonstrations that stand before every row.
        train: the training rows; without them demonstrations and the initial text alone are looked up.
    """
    sources = [template.source_key(row, languages) for row in rows]
    shown = {template.source_key(row, languages) for row in template.demonstrations}
    start = _spaced(normalised(initial_text or ""))
    demonstrated = tuple(number for number, source in enumerate(sources) if source in shown)
    initial = tuple(number for number, source in enumerate(sources) if initial_text and _stands_in(source, start))
    if train is None:
        return Leaks(len(rows), demonstrated=demonstrated, initial_text=initial)

    asked = dict.fromkeys(sources)
    known: dict[Source, dict[str, int]] = defaultdict(dict)  # of those asked: source -> target -> first training row

    def training_sources() -> Iterator[Source]:
        for number, row in enumerate(train):
            try:
                source = template.source_key(row, languages)
                if source in asked:
                    known[source].setdefault(_target(template, row, languages), number)
            except TemplateError:  # rows that demonstrations are chosen from were not checked, and may be of any kind
                source = ()
            yield source

    places = nearest_sources(training_sources(), asked)
    same, other, near = [], [], []
    for number, source in enumerate(sources):
        if source in known:
            targets, target = known[source], _target(template, rows[number], languages)
            (same if target in targets else other).append((number, targets.get(target, min(targets.values()))))
        elif source in places:
            near.append((number, places[source]))
    leaked = {number for number, _ in chain(same, other, near)}
    passages = _shared_passages(rows, train, leaked) if "context" in template.source_columns else None
    return Leaks(len(rows), tuple(same), tuple(other), tuple(near), passages, demonstrated, initial)


def nearest_sources(known: Iterable[Source], asked: Iterable[Source]) -> dict[Source, int]:
    """Asked source -> place of the first known one that it is near to, for those that are near to one; () is to none.

    Two sets with a Jaccard index of at least t share one of the n - ceil(t n) + 1 rarest members of each (prefix
    filtering, Chaudhuri et al. 2006), so rows that have the same frequent words are never paired for these. Candidates
    come of the value that differs most among the asked, as the question where rows share passages.
    """
    asked = list(asked)
    if not asked:
        return {}
    value = max(range(len(asked[0])), key=lambda place: len({source[place] for source in asked}))
    shingles = [[_shingles(text) for text in source] for source in asked]
    counts = Counter(chain.from_iterable(texts[value] for texts in shingles))
    index = defaultdict(list)
    for number, texts in enumerate(shingles):
        for shingle in _rarest(texts[value], counts):
            index[shingle].append(number)
    found: dict[int, int] = {}
    for place, source in enumerate(known):
        rarest = _rarest(_shingles(source[value]), counts) if source else []
        candidates = set(chain.from_iterable(index[shingle] for shingle in rarest if shingle in index))
        if candidates := candidates - found.keys():
            texts = [_shingles(text) for text in source]
            found |= {number: place for number in candidates if _alike(texts, shingles[number])}
    return {asked[number]: place for number, place in found.items()}


def _rarest(members: set[tuple[str, ...]], counts: Counter) -> list[tuple[str, ...]]:
    """Those of the rarest members that any asked row has; members that none has are rarer still."""
    wanted = len(members) - math.ceil(NEAR * len(members)) + 1
    occurring = [member for member in members if member in counts]
    wanted -= len(members) - len(occurring)
    return sorted(occurring, key=lambda member: (counts[member], member))[:wanted] if wanted > 0 else []


def _shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text) or text.split()
    if len(found) < SHINGLE:
        return {tuple(found)}
    return set(zip(*(found[start:] for start in range(SHINGLE)), strict=False))


def _alike(one: list[set], other: list[set]) -> bool:
    """Whether all values of two sources are near."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(len(a & b) >= NEAR * len(a | b) for a, b in pairs)


def _shared_passages(rows: Dataset, train: Dataset, leaked: set[int]) -> int:
    asked = {number: normalised(text) for number, text in enumerate(rows["context"]) if isinstance(text, str)}
    known = {normalised(text) for text in train["context"] if isinstance(text, str)}.intersection(asked.values())
    return sum(number not in leaked and text in known for number, text in asked.items())


def _target(template: Template, row: dict[str, Any], languages: dict[str, str] | None) -> str:
    return normalised(template.render_target(row, languages)[0])


def _spaced(text: str) -> str:
    return f" {' '.join(words(text))} "


def _stands_in(source: Source, start: str) -> bool:
    texts = [spaced for text in source if (spaced := _spaced(text)).strip()]
    return bool(texts) and all(text in start for text in texts)
