"""YAML files: only plain values, quick to read, and readable when written."""

import random
import time
from typing import Any

import pytest
import yaml

from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.support.yaml_files import read_text_pairs, read_yaml, to_yaml


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("1.10", "1.10"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("=", "="),
        ("true", True),
        ("False", False),
        ("-3", -3),
        ("1.5", 1.5),
        ("1.0e-05", 1e-05),
        ("-.inf", float("-inf")),
        ("~", None),
        ("'5'", "5"),
    ],
)
def test_a_plain_scalar_is_a_value_only_if_the_value_is_written_like_it(tmp_path, written, value):
    (tmp_path / "a.yaml").write_text(f"a: {written}\n")
    read = read_yaml(tmp_path / "a.yaml", DataError)["a"]
    assert read == value and type(read) is type(value)


def test_pairs_are_texts_with_their_lines(tmp_path):
    (tmp_path / "a.yaml").write_text("# comment\nseed: 7\nb: null\nc: 'null'\nd: {e: 1e-5, f: [no, ~]}\n")
    pairs = read_text_pairs(tmp_path / "a.yaml", DataError)
    assert [(pair.key, pair.value, pair.line) for pair in pairs] == [
        ("seed", "7", 2), ("b", None, 3), ("c", "null", 4), ("d", {"e": "1e-5", "f": ["no", "~"]}, 5)
    ]  # fmt: skip


def aliases(kind):
    """Return a text of 330 bytes that stands for 9 ** 9 values."""
    first = {"list": "a: &a [x,x,x,x,x,x,x,x,x]\n", "merge": "a: &a {k: 1}\n"}[kind]
    lines = []
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        items = ",".join([f"*{old}"] * 9)
        lines.append(f"{new}: &{new} [{items}]\n" if kind == "list" else f"{new}: &{new} {{<<: [{items}]}}\n")
    return first + "".join(lines)


@pytest.mark.parametrize("reader", [read_yaml, read_text_pairs])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: {b: 1,\n  b: 2}", "line 2: b was set on line 1 already. Keep one of the two."),
        ("a: &a {b: 1}\nc:\n  <<: *a\n  d: 1\n  d: 2", "line 5: d was set on line 4 already. Keep one of the two."),
        ("a: {1: x,\n  '1': y}", "line 2: 1 was set on line 1 already. Keep one of the two."),
        ("a: 1\nb: [", "line 2: not YAML: "),
        ("a: 1\n---\nb: 2", "line 2: not YAML: expected a single document"),
        ("a: {{b}}", "line 1: a key must be one text. Quote a value that begins with { or ["),
        ("a: " + "[" * 2000, "line 1: too deep to read. Nest lists and mappings less."),
        ("a: &a [*a]", "line 1: an alias stands inside of what it stands for"),
        (aliases("list"), "aliases make this too large or too deep to read"),
        (aliases("merge"), "aliases make this too large or too deep to read"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 500)),
            "aliases make this too large or too deep to read",
        ),
        ("a: \x00", "not YAML: "),
        ('a: "\\U0011ffff"', "chr() arg not in range"),
        ("a: [" + "x," * 20_000 + "]", "line 1: more than 20,000 values. Name a smaller file."),
        ("a: " + "word " * 200_000, "larger than 1,000,000 bytes. Name a smaller file."),
    ],
)
def test_a_broken_or_hostile_file_is_refused_at_once_with_its_line(tmp_path, reader, content, message):
    (tmp_path / "a.yaml").write_text(content)
    start = time.process_time()  # A busy machine must not fail this.
    with pytest.raises(DataError, match=r"a\.yaml") as caught:
        reader(tmp_path / "a.yaml", DataError)
    assert message in str(caught.value) and time.process_time() - start < 5


def test_whatever_is_written_is_read_back_by_this_and_other_readers(tmp_path):
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices("ab \n\r\t\x85\u2028\ufeff\xa0:#-'\"|>\\{}[]no01.%&*!,?\x07é中", k=9))
        values = {"a": [{text: text}], "b": text, "c": [1, 1.5, 1e-05, True, None, "no", "12:30", "007", "1e5"]}
        (tmp_path / "a.yaml").write_text(to_yaml(values), encoding="utf-8", newline="")
        assert read_yaml(tmp_path / "a.yaml", DataError) == values == yaml.safe_load(to_yaml(values))


def test_texts_of_several_lines_are_written_as_blocks_and_only_plain_values_at_all():
    shared = ["x"]
    assert to_yaml({"b": "One.\nTwo.\n", "a": shared, "c": shared}) == "b: |\n  One.\n  Two.\na:\n- x\nc:\n- x\n"
    for value in (b"x", {1}, object):
        with pytest.raises(TypeError):
            to_yaml({"a": value})


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 50_000, "0o" + "7" * 50_000])
def test_an_integer_of_too_many_digits_is_an_error_of_one_short_line(tmp_path, number):
    (tmp_path / "a.yaml").write_text(f"a: {number}")
    with pytest.raises(DataError, match=r"line 1: .* is not a valid int") as caught:
        read_yaml(tmp_path / "a.yaml", DataError)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_long_tag_makes_a_short_error(tmp_path):
    (tmp_path / "a.yaml").write_text("a: !" + "x" * 10_000 + " 1")
    with pytest.raises(DataError, match="only !Template and") as caught:
        read_yaml(tmp_path / "a.yaml", DataError)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "found"),
    [("", "it is null, expected an object"), ("- a", "it is a list"), ("1: x", "it is an object with the key 1")],
)
def test_a_file_of_another_type_than_expected_is_named(tmp_path, content, found):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(DataError, match=f"a.yaml: {found}"):
        read_yaml(tmp_path / "a.yaml", RecipeError, dict[str, Any])
