"""Refuse tokenizers whose steps, one after another, make a short text far too long."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import get_fast_tokenizer_file
from transformers.utils import cached_file

from prompt_tuning.errors import ModelError

MAX_GROWTH = 1000
"""How many times as long the steps of a tokenizer may make a text."""

MAX_WORD = 1000
"""The characters of a word that WordPiece cuts, which takes time by the cube of its length."""

DIRECTIONS = (("normalizer", "pre_tokenizer", "post_processor"), ("decoder",))
"""The parts of a tokenizer that a text goes through, and those that its tokens go through."""

SEQUENCES = ("normalizers", "pretokenizers", "processors", "decoders")
"""The keys of the steps of a step that has several."""


def check_growth_in_file(name: str, revision: str | None) -> None:
    """Raise a ModelError for a file whose steps make a text too long; the library takes them as it reads the file.

    Args:
        name: a folder or a hub id.
        revision: the revision on the hub.
    """
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    config = cached_file(name, "tokenizer_config.json", **options)
    versions = json.loads(Path(config).read_bytes()).get("fast_tokenizer_files", []) if config else []
    file = cached_file(name, get_fast_tokenizer_file(versions), **options)
    if file:
        _check_steps(json.loads(Path(file).read_bytes()), name)


def check_growth(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise a ModelError for a tokenizer, of files of any format, whose steps make a text too long."""
    parts = {}
    for part in chain(*DIRECTIONS) if tokenizer.is_fast else ():
        step = getattr(tokenizer.backend_tokenizer, part)
        parts[part] = json.loads(step.__getstate__()) if step else None
    _check_steps(parts, name)


def _check_steps(tokenizer: dict[str, Any], name: str) -> None:
    longest = (tokenizer.get("model") or {}).get("max_input_chars_per_word", 0)
    if longest > MAX_WORD:
        raise ModelError(f"{name}: its tokenizer takes words of {longest:,} characters. Take another model.")
    for parts in DIRECTIONS:
        growth = 1
        for step in chain.from_iterable(_steps(tokenizer.get(part) or {}) for part in parts):
            growth *= max(1, _growth(step))
            if growth > MAX_GROWTH:
                raise ModelError(
                    f"{name}: the replacements of its tokenizer make a text {growth:,} times as long. Take another "
                    "model."
                )


def _growth(step: dict[str, Any]) -> int:
    """Return how many times as long a step of a tokenizer may make a text at most."""
    match step.get("type"):
        case "Replace":
            pattern, content = step["pattern"].get("String"), len(step["content"])
            # An expression may match nothing, before every character.
            return -(-content // len(pattern)) if pattern else 1 + content
        case "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"] or "")
            texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].decode(errors="replace")
            return max(map(len, texts.split("\0")))
        case "TemplateProcessing":
            sequences = sum("Sequence" in piece for piece in step["single"])
            names = [piece["SpecialToken"]["id"] for piece in step["single"] if "SpecialToken" in piece]
            return max(sequences, sum(len(step["special_tokens"][name]["ids"]) for name in names))
        case "ByteLevel":
            # A character has up to four bytes, and there may be a space before each.
            return 5
    return 1


def _steps(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part of a tokenizer, also those of steps that have several."""
    yield part
    for name in SEQUENCES:
        for step in part.get(name, ()):
            yield from _steps(step)
