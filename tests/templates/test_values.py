"""Values that are not texts: a template refuses to print them, and names the way out."""

import pytest

from prompt_tuning import Template
from prompt_tuning.cli.main import main
from prompt_tuning.errors import TemplateError

ROW = {
    "texts": ["a", "b"],
    "nested": [["a"], ["b"]],
    "answers": {"text": ["a"], "answer_start": [3]},
    "raw": b"abc",
    "word": "x",
    "number": 1.5,
}
LIST = r"a value it prints is a list. Write `\| join\(', '\)` or `\| tojson`, or take one item, such as \[0\]"
MAPPING = (
    r"a value it prints is a mapping with the keys 'text', 'answer_start'. Name one of them, or write `\| tojson`"
)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ texts }}", LIST),
        ("{{ answers }}", MAPPING),
        ("{{ answers.text }}", LIST),
        ("{{ raw }}", r"is bytes. Write `.decode\(\)` after it"),
        ("{{ word ~ texts }}", LIST),
        ("{{ word ~ answers }}", MAPPING),
        ("{{ word ~ raw }}", "is bytes"),
        ("{{ texts | string }}", LIST),
        ("{{ '%s' | format(texts) }}", LIST),
        ("{{ '%r' % texts }}", LIST),
        ("{{ '{}'.format(answers) }}", MAPPING),
        ("{{ nested | join(', ') }}", LIST),
        ("{{ [[word]] | join(', ') }}", LIST),
        ("{{ answers.items() | join(', ') }}", LIST),
        ("{{ texts | map('list') | join }}", LIST),
        ("{{ [none] | join }}", "a value it prints is null"),
        ("{{ [answers] | join(attribute='text') }}", LIST),
        ("{{ texts | upper }}", LIST),
        ("{{ word | replace('x', texts) }}", LIST),
        ("{{ texts + texts }}", LIST),
        ("{{ texts[:1] }}", LIST),
        ("{{ texts[:1] ~ '' }}", LIST),
        ("{{ (texts | list) | string }}", LIST),
        ("{{ [word, word] ~ word }}", LIST),
        ("{{ '%s' | format([word]) }}", LIST),
        ("{{ texts | map('upper') }}", LIST),
        ("{{ {'a': word} }}", "is a mapping with the keys 'a'"),
        ("{{ range(3) }}", LIST),
        ("{{ word.upper }}", "is a function. Call it"),
        ("{{ answers.items }}", "is a function. Call it"),
        ("{% set shown %}{{ texts }}{% endset %}{{ shown }}", LIST),
        ("{% filter upper %}{{ texts }}{% endfilter %}", LIST),
        ("{% macro show(x) %}{{ x }}{% endmacro %}{{ show(texts) }}", LIST),
    ],
)
def test_a_value_that_is_not_a_text_is_not_printed(source, message):
    with pytest.raises(TemplateError, match=message):
        Template("{{ word }} " + source, "x").render(ROW)
    with pytest.raises(TemplateError, match=message):
        Template("{{ word }}", source).render(ROW)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ texts | join(', ') }}", "a, b"),
        ("{{ answers | tojson }}", '{"answer_start": [3], "text": ["a"]}'),
        ("{{ {'k': ['<é> & \u6e21']} | tojson }}", '{"k": ["<é> & \u6e21"]}'),
        ("{{ ({'k': 1} | tojson(indent=1)) + '<' }}", '{\n "k": 1\n}<'),
        ("{{ [answers] | join(attribute='text.0') }}{{ [1, 2.5, true] | join('-') }}", "a1-2.5-True"),
        ("{{ texts[0] }}{{ answers.text[0] }}", "aa"),
        ("{{ raw.decode() }}", "abc"),
        ("{{ word ~ number ~ 2 ~ true }}", "x1.52True"),
        ("{% for text in texts %}{{ loop.index }}{{ text }}{% endfor %}", "1a2b"),
        ("{{ texts | length }}{{ 'a' in texts }}{{ texts == ['a', 'b'] }}", "2TrueTrue"),
        ("{{ nested | map('join') | join('-') }}", "a-b"),
        ("{{ texts | sort | first }}{{ answers.items() | list | length }}", "a2"),
    ],
)
def test_texts_of_lists_and_numbers_are_printed(source, text):
    assert Template(source, "x").render(ROW).source == text


def test_a_value_that_is_not_a_text_is_an_error_with_the_line_of_its_row(recipe_file, capsys):
    template = recipe_file().parent / "mine.yaml"
    template.write_text("source: '{{ question }} {{ answers }}'\ntarget: '{{ answers.text[0] }}'\n")
    assert main(["check", str(recipe_file(template=template))]) == 1
    errors = capsys.readouterr().err
    assert "train.jsonl, line 1: template" in errors
    assert "a value it prints is a mapping with the keys 'text', 'answer_start'" in errors
