"""Read and write YAML files as plain values.

Whatever a file says, reading it constructs only texts, numbers, truth values, dates, lists and mappings, and stays
cheap: nesting and aliases are bounded.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, MaxDepthExceededError
from ruamel.yaml.constructor import BaseConstructor, ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

from prompt_tuning.errors import PromptTuningError, first_line
from prompt_tuning.support.json_types import Place, check_value
from prompt_tuning.support.json_values import read_bounded

MAX_DEPTH = 64  # lists and mappings in each other
MAX_BYTES = 1_000_000  # a file
MAX_VALUES = 20_000  # keys, items and values
MAX_SIZE = 2_000_000  # characters and values, each alias counted as what it stands for
MAPPING_TAGS = ("!Template", "!TemplateMetadata")  # promptsource marks ordinary mappings with these
NULLS = ("null", "~")
LINE_WIDTH = 120

_STANDARD_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class TextPair:
    """One pair of a YAML mapping.

    Args:
        key: the key as written.
        value: every scalar in it as the text that stands in the file. None for a plain `null` or `~`.
        line: the line of the key, from 1.
    """

    key: str
    value: str | list[Any] | dict[str, Any] | None
    line: int


def read_yaml(path: Path, error: type[PromptTuningError], kind: Any = Any) -> Any:
    """Return the value of a YAML file.

    A plain scalar is a number, a truth value or a date only if that value is written in the same way. So `no`,
    `12:30`, `1.10` and `007` are texts.

    Args:
        path: a file of UTF-8 text.
        error: what to raise.
        kind: what the value must be, as `check_value` takes it.

    Raises:
        PromptTuningError: of the kind `error`. The file is not UTF-8 or not YAML, sets a key twice, has a tag that
            would construct an object, or nests too deeply. The message names the file and the line.
        DataError: the value is of another type.
    """
    with _explain(path, error):
        value = parse_yaml(read_bounded(path, MAX_BYTES), path, error)
    check_value(value, kind, Place(str(path)))
    return value


def parse_yaml(text: str, path: Path, error: type[PromptTuningError]) -> Any:
    """Return the value of YAML that is part of a file, with the limits and errors of `read_yaml`."""
    with _explain(path, error):
        return _reader("safe", _PlainConstructor).load(text)


def read_text_pairs(path: Path, error: type[PromptTuningError]) -> list[TextPair]:
    """Return the pairs of a YAML mapping, with every scalar as text.

    Args:
        path: a file of UTF-8 text.
        error: what to raise.

    Raises:
        PromptTuningError: of the kind `error`. The file is not UTF-8 or not YAML, is not a mapping, sets a key twice
            within a value, or nests too deeply. The message names the file and the line.
    """
    with _explain(path, error):
        text = read_bounded(path, MAX_BYTES)
    return text_pairs(text, path, error)


def text_pairs(text: str, path: Path, error: type[PromptTuningError]) -> list[TextPair]:
    """Return the pairs of a mapping in YAML, which messages call `path`; raise as `read_text_pairs` does."""
    yaml = _reader("base", BaseConstructor)  # texts, lists and mappings, whatever tags say
    pairs = []
    with _explain(path, error):
        root = yaml.compose(text)
        if not isinstance(root, MappingNode):
            kind = "an empty file" if root is None else "a list" if root.id == "sequence" else "one text"
            raise error(f"{path}: expected `key: value` pairs, found {kind}. Write one pair a line.")
        _measure(root, {})
        for key_node, value_node in root.value:
            value = yaml.constructor.construct_object(value_node, deep=True)
            is_quoted = isinstance(value_node, ScalarNode) and value_node.style is not None
            if value in NULLS and not is_quoted:
                value = None
            pairs.append(TextPair(key_node.value, value, key_node.start_mark.line + 1))
    return pairs


def to_yaml(values: Any) -> str:
    """Return values as YAML: mappings in their order, texts of several lines as blocks (`|`).

    Raises:
        TypeError: a value is not a text, number, truth value, date, list or mapping. The message is its repr.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _BlockRepresenter
    yaml.Resolver = _StrictestResolver
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel.yaml types it as None
    yaml.width = LINE_WIDTH
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


def _reader(typ: str, constructor: type[BaseConstructor]) -> YAML:
    yaml = YAML(typ=typ, pure=True)
    yaml.Composer = _BoundedComposer
    yaml.Constructor = constructor
    yaml.max_depth = MAX_DEPTH
    yaml.composer.warn_double_anchors = False
    return yaml


@contextmanager
def _explain(path: Path, error: type[PromptTuningError]) -> Iterator[None]:
    """Raise the errors of the library as errors of ours, with file and line."""
    try:
        yield
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text (byte {problem.start}). Save it as UTF-8.") from None
    except ValueError as problem:
        raise error(f"{path}: {problem}. Name a smaller file.") from None
    except MaxDepthExceededError as problem:
        line = problem.problem_mark.line + 1
        raise error(f"{path}, line {line}: too deep to read. Nest lists and mappings less.") from None
    except ConstructorError as problem:
        raise error(f"{path}, line {problem.problem_mark.line + 1}: {problem.problem}") from None
    except MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(filter(None, (problem.context, problem.problem)))
        raise error(f"{path}{line}: not YAML: {reason}") from None
    except YAMLError as problem:
        raise error(f"{path}: not YAML: {first_line(problem)}") from None


def _measure(node: Node, measured: dict[Node, tuple[int, int] | None]) -> tuple[int, int]:
    """Return the size and the depth of a node, each alias counted as what it stands for.

    Args:
        node: a node of the document, in which an alias is the same object as its anchor.
        measured: results so far. None for a node that contains this one.

    Raises:
        ConstructorError: a key is set twice, or aliases make the document endless, too deep or too large.
    """
    if node in measured:
        result = measured[node]
        if result is None:
            raise _error("an alias stands inside of what it stands for. Write the value out", node)
        return result
    measured[node] = None
    size, depth = len(node.value) + 1, 1
    for child in _children(node):
        child_size, child_depth = _measure(child, measured)
        size += child_size
        depth = max(depth, child_depth + 1)
    if size > MAX_SIZE or depth > MAX_DEPTH:
        raise _error("aliases make this too large or too deep to read. Write fewer", node)
    measured[node] = (size, depth)
    return size, depth


def _children(node: Node) -> list[Node]:
    """Return the keys and values, or the items, of a node."""
    if isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, ScalarNode):
                raise _error("a key must be one text. Quote a value that begins with { or [", key_node)
            key = key_node.value
            if key in lines:
                raise _error(f"{key} was set on line {lines[key]} already. Keep one of the two", key_node)
            lines[key] = key_node.start_mark.line + 1
        return list(itertools.chain.from_iterable(node.value))
    return [] if isinstance(node, ScalarNode) else node.value


def _error(problem: str, node: Node) -> ConstructorError:
    return ConstructorError(problem=f"{problem}.", problem_mark=node.start_mark)


class _BoundedComposer(Composer):
    """Compose at most MAX_VALUES nodes, since each takes some 20 microseconds."""

    num_values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise ConstructorError(
                problem=f"more than {MAX_VALUES:,} values. Name a smaller file.",
                problem_mark=self.parser.peek_event().start_mark,
            )
        return super().compose_node(parent, index)


class _PlainConstructor(SafeConstructor):
    """Construct plain values, and texts from scalars that would be written in another way."""

    def construct_document(self, node: Node) -> Any:
        _measure(node, {})
        return super().construct_document(node)

    def construct_as_written(self, node: Node) -> Any:
        """Return the value of a scalar if it is written like this, else the text."""
        tag = str(node.tag)
        try:
            value = SafeConstructor.yaml_constructors[tag](self, node)
            return value if node.value in _written_forms(value) else node.value
        except (ValueError, LookupError, AttributeError, TypeError, ConstructorError):
            kind = tag.rpartition(":")[2]
            text = repr(node.value)[:LINE_WIDTH]
            raise _error(f"{text} is not a valid {kind}. Put the value in quotes", node) from None

    def refuse_tag(self, node: Node) -> NoReturn:
        """Raise ConstructorError, since the tag would construct something else than a plain value."""
        tag = str(node.tag).replace(_STANDARD_TAG, "!!")[:LINE_WIDTH]
        raise _error(f"tag {tag}: only {' and '.join(MAPPING_TAGS)} are allowed. Write a plain value", node)


def _written_forms(value: Any) -> set[str]:
    """Return the ways to write a number, truth value or date that are read as such."""
    forms = {str(value)}
    if isinstance(value, bool):
        forms.add(str(value).lower())
    elif isinstance(value, float):
        forms |= {f".{value}", f"-.{-value}", _float_text(value)}
    return forms


def _float_text(value: float) -> str:
    """Return a float in the form that YAML 1.1 and 1.2 both read as one, `1.0e-05`."""
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")


for _tag in MAPPING_TAGS:
    _PlainConstructor.add_constructor(_tag, SafeConstructor.construct_yaml_map)
for _kind in ("bool", "int", "float", "timestamp"):
    _PlainConstructor.add_constructor(_STANDARD_TAG + _kind, _PlainConstructor.construct_as_written)
for _kind in ("binary", "omap", "pairs", "set"):
    _PlainConstructor.add_constructor(_STANDARD_TAG + _kind, _PlainConstructor.refuse_tag)
_PlainConstructor.add_constructor(_STANDARD_TAG + "value", SafeConstructor.construct_yaml_str)  # a plain =
_PlainConstructor.add_constructor(None, _PlainConstructor.refuse_tag)


class _StrictestResolver(VersionedResolver):
    """Quote each text that YAML 1.1 takes for something else, such as `no`; 1.2 takes fewer."""

    @property
    def processing_version(self) -> tuple[int, int]:
        return 1, 1


class _BlockRepresenter(SafeRepresenter):
    """Represent texts of several lines as blocks, and only what `read_yaml` reads."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> Node:
        style = "|" if "\n" in text.strip() else None
        if _ONLY_QUOTED.search(text):
            style = '"'
        return self.represent_scalar(f"{_STANDARD_TAG}str", text, style=style)

    def represent_number(self, value: float) -> Node:
        if value != value or value in (float("inf"), float("-inf")):
            return self.represent_float(value)
        return self.represent_scalar(f"{_STANDARD_TAG}float", _float_text(value))

    def refuse(self, value: Any) -> NoReturn:
        raise TypeError(repr(value))


# Only double quotes keep control characters, and line breaks other than `\n`.
_ONLY_QUOTED = re.compile(r"[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_BlockRepresenter.add_representer(str, _BlockRepresenter.represent_text)
_BlockRepresenter.add_representer(float, _BlockRepresenter.represent_number)
for _type in (bytes, set, None):
    _BlockRepresenter.add_representer(_type, _BlockRepresenter.refuse)
