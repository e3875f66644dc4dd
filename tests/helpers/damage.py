"""Draw damage to a file with hypothesis: its values if it can be parsed, its bytes, or a link in its place."""

import contextlib
import functools
import io
import json
import operator
from dataclasses import fields
from typing import Any, NamedTuple

import safetensors.torch
import torch
import yaml
from hypothesis import strategies as st
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.arguments.training_args import PromptTuningArguments
from prompt_tuning.templates.template import Template

REMOVED = ...  # As the value of a `Change`, it takes the key out.
ESCAPE = "\x1b[31m"


class Change(NamedTuple):
    """Another value at a path of a document."""

    path: tuple
    value: Any


class Splice(NamedTuple):
    """Other bytes in place of some."""

    start: int
    length: int
    content: bytes


class Swap(NamedTuple):
    """A link to a target in place of the file, a folder, or nothing."""

    target: str


SNIPPETS = (
    b"", b"\0", b"\n", b"\t", b"{", b"}", b"[", b"]", b'"', b"'", b":", b",", b"&a ", b"*a", b"- ", b"|", b"<<: ",
    b"!!python/object:os.system ", b"{{", b"}}", b"{%", b"%}", b"\xef\xbb\xbf", b"\xff\xfe", "\u2028".encode(),
    b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"NaN", b"null", b"true", b"| join", b"| tojson", b" ** 9",
    b"~ context", b"{% include 'x' %}", b"{% for i in range(100000) %}", b"{% endfor %}",
)  # fmt: skip
SPECIAL = st.sampled_from((
    None, True, False, -1, 0, 1, 7, 0.5, 10**8, 2**31, 2**63, 10**30, 10**400, 1e308, 1e-320, float("nan"),
    float("inf"), "", " ", "x", "x" * 5000, "9" * 5000, "../../outside", "/dev/null/x", "a/b", "http://localhost:1/x",
    "no", "null", "1e400", "-1", "nan", "\0", ESCAPE, "\ud800", "\u202e", "line\nbreak", "{{ 9**(9**9) }}",
    "{{ context }}", "{% for", "[[", "runs", ".", "..", "llama", [], [[]], [1, "x"], [None], {}, {"a": None}, {"": {}},
))  # fmt: skip
JSON = SPECIAL | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
TERMS = (
    *(f"({{}} {sign} {{}})" for sign in ("+", "*", "**", "~", "//", "%", "in", "and", "if", "<")),
    *(f"{{}} | {name}" for name in DEFAULT_FILTERS),
    *(f"{{}} | {name}({{}})" for name in DEFAULT_FILTERS),
    *(f"{{}} is {name}" for name in DEFAULT_TESTS),
    "{}[{}]", "{}({})", "[{}, {}]",
)  # fmt: skip
EXPRESSIONS = st.recursive(
    st.sampled_from(("context", "question", "answers.text", "answers", "none", "loop", "self", "range", "namespace()"))
    | st.integers(-(10**9), 10**9).map(str)
    | st.text(max_size=5).map(repr),
    lambda inner: st.builds(str.format, st.sampled_from(TERMS), inner, inner),
    max_leaves=5,
)
BLOCKS = (
    "{}{}", "{{% for x in {e} %}}{}{{% endfor %}}", "{{% if {e} %}}{}{{% else %}}{}{{% endif %}}",
    "{{% set x = {e} %}}{}", "{{% macro m(x) %}}{}{{% endmacro %}}{{{{ m({e}) }}}}",
)  # fmt: skip
JINJA = st.recursive(
    EXPRESSIONS.map("{{{{ {} }}}}".format) | st.text(max_size=5),
    lambda inner: st.builds(str.format, st.sampled_from(BLOCKS), inner, inner, e=EXPRESSIONS),
    max_leaves=4,
)
TENSORS = st.builds(
    lambda shape, value, dtype: torch.full(shape, value).to(dtype),
    st.lists(st.sampled_from((0, 1, 2, 6, 32)), max_size=3),
    st.sampled_from((0.0, 1.0, -1.0, 1e30, float("nan"), float("inf"))),
    st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)),
)


def torch_bytes(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


# How a file is parsed and written, and what is put into it, by its ending.
PICKLED = (lambda content: torch.load(io.BytesIO(content), weights_only=False), torch_bytes, SPECIAL | TENSORS)
FORMATS = {
    ".json": (json.loads, lambda value: json.dumps(value).encode(), JSON),
    ".jsonl": (
        lambda content: [json.loads(line) for line in content.splitlines()],
        lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows),
        JSON,
    ),
    ".yaml": (
        yaml.safe_load,
        lambda value: yaml.safe_dump(value, allow_unicode=True).encode(errors="surrogatepass"),
        JSON | JINJA,
    ),
    ".safetensors": (safetensors.torch.load, safetensors.torch.save, TENSORS),
    ".pt": PICKLED,
    ".pth": PICKLED,
}


def names_of(*kinds):
    return sorted({field.name for kind in kinds for field in fields(kind)})


# The keys that a file may have, by its name or ending.
KEYS = {
    "adapter_config.json": names_of(*PEFT_TYPE_TO_CONFIG_MAPPING.values()),
    "mine.yaml": names_of(Template),
    "template.yaml": names_of(Template),
    ".yaml": names_of(ModelArguments, DataArguments, PromptArguments, PromptTuningArguments),
}


def paths_in(value, path=()):
    """Yield the path to every value in a value of JSON."""
    yield path
    if isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_in(entry, (*path, key))


def value_at(value, path):
    return functools.reduce(operator.getitem, path, value)


def replaced(value, path, new):
    """Return a copy of a value with another value at a path; REMOVED takes it out."""
    if not path:
        return {} if new is REMOVED else new
    value = value.copy()
    if new is REMOVED and len(path) == 1:
        del value[path[0]]
    else:
        value[path[0]] = replaced(value[path[0]], path[1:], new) if len(path) > 1 else new
    return value


def alike(value, suffix):
    """Return a strategy of values that a reader could take in place of a value."""
    if isinstance(value, str) and suffix == ".yaml":
        return JINJA
    return st.from_type(type(value)) if isinstance(value, (bool, int, float, str)) else st.just(value)


def damages(path):
    """Return a strategy of one damage to a file, which may be missing."""
    content = path.read_bytes() if path.is_file() else b""
    lengths = st.integers(0, 200) | st.just(len(content))
    texts = st.sampled_from(SNIPPETS) | st.binary(max_size=8)
    splices = st.builds(Splice, st.integers(0, len(content)), lengths, texts)
    swaps = st.builds(Swap, st.sampled_from(("", "folder", "/etc/passwd", "../../../outside", "results.json")))
    if path.suffix not in FORMATS or not content:
        return st.one_of(splices, splices, splices, swaps)
    read, _, values = FORMATS[path.suffix]
    document = read(content)
    paths = list(paths_in(document))
    values = values | st.sampled_from([value_at(document, place) for place in paths])
    changes = st.sampled_from(paths).flatmap(
        lambda place: st.builds(
            Change, st.just(place), alike(value_at(document, place), path.suffix) | values | st.just(REMOVED)
        )
    )
    objects = [place for place in paths if isinstance(value_at(document, place), dict)]
    keys = st.sampled_from(KEYS.get(path.name) or KEYS.get(path.suffix) or ["x"]) | st.text(max_size=5)
    places = st.builds(lambda place, key: (*place, key), st.sampled_from(objects or [()]), keys)
    additions = st.builds(Change, places, values)
    return st.one_of(changes, changes, changes, additions, additions, splices, splices, splices, swaps)


def damage(path, how):
    """Damage a file, unless it is a link or a folder by now, or a document that has no such place."""
    if path.is_symlink() or path.is_dir():
        return
    content = path.read_bytes() if path.is_file() else b""
    if isinstance(how, Swap):
        path.unlink(missing_ok=True)
        if how.target == "folder":
            path.mkdir()
        elif how.target:
            path.symlink_to(how.target)
    elif isinstance(how, Splice):
        path.write_bytes(content[: how.start] + how.content + content[how.start + how.length :])
    else:
        read, write, _ = FORMATS[path.suffix]
        with contextlib.suppress(Exception):
            path.write_bytes(write(replaced(read(content), how.path, how.value)))
