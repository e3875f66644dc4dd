"""Template files as plain values: whatever a file says, nothing is constructed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.constructor import ConstructorError

from prompt_tuning.errors import TemplateError

PROMPTSOURCE_TAGS = ("!Template", "!TemplateMetadata")


def read_yaml(path: Path) -> Any:
    """What a file holds.

    Raises:
        TemplateError: it is no YAML of plain values; with the line, where the file has a tag or says a key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise TemplateError(f"template {path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except ConstructorError as error:
        raise TemplateError(f"template {path}, line {error.problem_mark.line + 1}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise TemplateError(f"template {path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise TemplateError(f"template {path}: lists or mappings in each other, too deep to read") from None


def write_yaml(values: Any) -> str:
    return yaml.dump(values, Dumper=_BlockDumper, sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    """Reads promptsource's two tags as mappings, others as YAML's plain values or not at all, and no key twice."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        counts = Counter(str(key.value) for key, _ in node.value) if isinstance(node, yaml.MappingNode) else {}
        if twice := [key for key, count in counts.items() if count > 1]:
            raise ConstructorError(None, None, f"{twice[0]!r} is there twice; keep one of the two", node.start_mark)
        return super().construct_mapping(node, deep)


def _mapping(loader: _Loader, node: yaml.Node) -> dict:
    return loader.construct_mapping(node, deep=True)


def _refuse(loader: _Loader, node: yaml.Node) -> NoReturn:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    known = " and ".join(PROMPTSOURCE_TAGS)
    raise ConstructorError(
        None, None, f"tag {tag}: a template is plain values, only {known} may stand before one", node.start_mark
    )


for _tag in PROMPTSOURCE_TAGS:
    _Loader.add_constructor(_tag, _mapping)
for _tag in (None, *(f"tag:yaml.org,2002:{kind}" for kind in ("binary", "omap", "pairs", "set"))):
    _Loader.add_constructor(_tag, _refuse)


def _as_it_stands(loader: _Loader, node: yaml.Node) -> Any:
    """A value that would be written in the same way, else the text: `no`, `12:30`, `1.10` and `007` are no others."""
    try:
        value = yaml.SafeLoader.yaml_constructors[node.tag](loader, node)
    except (ValueError, LookupError, AttributeError):  # as 2024-13-45, or a text that a tag says is something else
        kind = node.tag.rpartition(":")[2]
        raise ConstructorError(
            None, None, f"{node.value!r} is no {kind}; put the value in quotes", node.start_mark
        ) from None
    same = node.value in (str(value), yaml.SafeDumper("").represent_data(value).value)
    return value if same else node.value


for _kind in ("bool", "int", "float", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _as_it_stands)
_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)  # a plain =


class _BlockDumper(yaml.SafeDumper):
    """Writes text of several lines as people do, and no bytes, which `read_yaml` refuses."""


def _written_text(dumper: _BlockDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text.strip() else None
    if "\x85" in text:  # a line break to YAML, that the other styles would read back as a space
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_BlockDumper.add_representer(str, _written_text)
_BlockDumper.add_representer(bytes, _BlockDumper.represent_undefined)
