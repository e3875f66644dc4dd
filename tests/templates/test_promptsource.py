"""Templates of promptsource write what promptsource writes, and nothing in their files runs."""

from pathlib import Path

import jinja2
import pytest
import yaml

from prompt_tuning.errors import TemplateError
from prompt_tuning.templates.promptsource import PIPE_PROTECTOR, convert
from prompt_tuning.templates.template import Template, load_templates

FOLDER = Path(__file__).parents[1] / "fixtures" / "promptsource" / "harbour"
STATEMENTS, QUESTIONS = FOLDER / "statements" / "templates.yaml", FOLDER / "questions" / "templates.yaml"
ROWS = {
    STATEMENTS: [
        {"entry": "The brig came in at dawn.  ", "statement": "The brig came in early.", "label": 0},
        {"entry": "\nFog; no ship left ||| or came.", "statement": "Two ships left.", "label": 1},
        {"entry": "A schooner took on salt.", "statement": "It was bound for Norway.", "label": 2},
    ],
    QUESTIONS: [
        {
            "entry": "The pilot boat was mended on Friday.",
            "question": "What was mended?",
            "options": ["the mole", " the pilot boat", "a ||| sail"],
            "votes": ["a sail", "the pilot boat", "the pilot boat"],
        }
    ],
}
LEFT_OUT = {
    "drawn": "its filter choice draws at random",
    "no target": "it has no ||| between source and target",
    "unknown filter": "No filter named 'shout'",
    "unclosed": "Unexpected end of template",
    "two separators": "it has more than one |||",
    "loop": "its ||| stands inside a for block",
    "some branches": "more follows an if of which only some branches hold |||",
    "choices missing": "its field answer_choices is empty",
    "set block": "it has a set block",
}


class PlainLoader(yaml.SafeLoader):
    pass


PlainLoader.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_mapping(node, deep=True))


def as_promptsource(entry, row):
    """Return source, target and choices as promptsource makes them: render everything, then cut."""
    environment = jinja2.Environment()
    environment.globals["zip"] = zip
    environment.filters["most_frequent"] = lambda items: [max(items, key=items.count)]

    def cut(text, **values):
        held = {key: hold(value) for key, value in values.items()}
        parts = environment.from_string(text).render(held).split("|||")
        return [part.strip().replace("HELD", "|||") for part in parts]

    def hold(value):
        if isinstance(value, list):
            return [hold(item) for item in value]
        return value.replace("|||", "HELD") if isinstance(value, str) else value

    choices = entry.get("answer_choices") or []
    if isinstance(choices, str):
        choices = cut(choices, **row)
    return *cut(entry["jinja"], **row, answer_choices=choices), choices


def test_converted_templates_write_what_promptsource_writes():
    templates, unreadable = load_templates(FOLDER)
    converted = 0
    for path, rows in ROWS.items():
        for key, entry in yaml.load(path.read_text(), PlainLoader)["templates"].items():
            name = f"{path}:{key if entry['name'] == 'same name' else entry['name']}"
            if entry["name"] in LEFT_OUT:
                assert LEFT_OUT[entry["name"]] in unreadable[name] and f"{name}: " in unreadable[name]
                continue
            template = templates[name]
            converted += 1
            for row in rows:
                rendered = template.render(row)
                assert (rendered.source, rendered.target, template.choices(row)) == as_promptsource(entry, row)
    assert converted == len(templates) == 7 and len(unreadable) == len(LEFT_OUT)


def test_the_columns_for_prediction_leave_those_of_the_target_out():
    closed = Template.load(f"{STATEMENTS}:is it so")
    assert closed.source_columns == {"entry", "statement"} and closed.columns == {"entry", "statement", "label"}
    assert closed.target == "{{answer_choices[label]}}" and closed.choices({}) == ["Yes", "No", "Perhaps"]
    assert Template.load(f"{STATEMENTS}:Choose: true or false").source_columns == {"entry", "statement", "label"}
    assert Template.load(f"{QUESTIONS}:vote").source_columns == {"entry", "question", "options"}


@pytest.mark.parametrize("name", [f"{STATEMENTS}:Choose: true or false", f"{QUESTIONS}:vote"])
def test_a_converted_template_survives_being_saved(name, tmp_path):
    (tmp_path / "template.yaml").write_text(Template.load(name).to_yaml(), encoding="utf-8")
    for row in ROWS[Path(name.split(".yaml")[0] + ".yaml")]:
        assert Template.load(tmp_path / "template.yaml").render(row) == Template.load(name).render(row)


def test_loading_a_template_that_cannot_be_converted_raises_the_reason():
    with pytest.raises(TemplateError, match="its filter choice draws at random"):
        Template.load(f"{STATEMENTS}:drawn")
    with pytest.raises(TemplateError, match=r"Name one, such as .*:is it so$"):
        Template.load(f"{STATEMENTS}:is it soo")
    with pytest.raises(TemplateError, match="the file holds 12 "):
        Template.load(STATEMENTS)


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!Other", "!!python/object/new:os.system"]
)
def test_a_tag_that_constructs_is_refused_with_its_line_and_nothing_runs(tmp_path, tag):
    path, created = tmp_path / "templates.yaml", tmp_path / "made"
    path.write_text(
        f"dataset: a\ntemplates:\n  x: !Template\n    name: y\n    jinja: {tag} ['touch {created}']\n",
        encoding="utf-8",
    )
    with pytest.raises(TemplateError) as caught:
        load_templates(path)
    assert f"{path}, line 5: tag {tag}: " in str(caught.value)
    assert not created.exists()


@pytest.mark.parametrize("field", ["jinja", "answer_choices"])
def test_a_template_cannot_leave_the_sandbox(tmp_path, field):
    entry = {"name": "x", "jinja": "a ||| b", "answer_choices": "a ||| b"}
    escape = "{{ entry.__class__.__mro__[1].__subclasses__() }} ||| {{ zip.__globals__ }}"
    values = {"dataset": "a", "templates": {"1": entry | {field: escape}}}
    path = tmp_path / "templates.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    template = Template.load(f"{path}:x")
    with pytest.raises(TemplateError, match="unsafe"):
        template.render({"entry": "e"})


PRINTED = "{% for sail in sails %}{{ names.append(sail | upper) | default('', True) }}{% endfor %}"


@pytest.mark.parametrize(
    ("jinja", "source", "target"),
    [
        ("{% set names = [] %}" + PRINTED + "{{ names | join(', ') }} ||| {{ names[0] }}", "JIB, FORE", "JIB"),
        ("{% set names = [] %}{{ sails | length }} ||| " + PRINTED + "{{ names | join }}", "2", "JIBFORE"),
        (
            "{% set names = {'a': 1} %}{% if sails %}{{- names.update({'b': sails[1]}) or 'x' -}}{% endif %} "
            "{{ names.b }}{{ names.pop('a') }} ||| {{ names | length }} {{ names.b }}",
            "x fore1", "1 fore",
        ),
        (
            "{% set ns = namespace(names=[]) %}{% for sail in sails %}{% set _ = ns.names.append(sail) %}{% endfor %}"
            "{{ ns.names.pop() }} ||| {{ ns.names | join }}",
            "fore", "jib",
        ),
    ],
)  # fmt: skip
def test_a_template_changes_the_lists_and_mappings_that_it_makes(jinja, source, target):
    row = {"sails": ["jib", "fore"]}
    template = Template.from_dict(convert({"jinja": jinja}, "x"))
    rendered = template.render(row)
    assert [rendered.source, rendered.target] == [source, target] == list(as_promptsource({"jinja": jinja}, row)[:2])
    assert Template.from_dict(yaml.safe_load(template.to_yaml())).render(row) == rendered


def test_a_template_that_changes_a_row_is_refused_when_it_is_loaded():
    for text in ("{{ votes.append('x') or '' }}", "{{ answers.text.pop() }}", "{{ answer_choices.clear() or '' }}"):
        with pytest.raises(
            TemplateError, match=r"would change the row's (votes|answers|answer_choices); change a list"
        ):
            Template.from_dict({"source": f"a{text}", "target": "x", "answer_choices": "x ||| y"})
    row = {"votes": ["a"], "nested": [["b"]]}
    for text in ("{% set v = votes %}{{ v.append('x') }}", "{% set v = nested | list %}{{ v[0].pop() }}"):
        with pytest.raises(TemplateError, match=r"access to attribute '(append|pop)' of 'list' object is unsafe"):
            Template.from_dict({"source": text, "target": "x"}).render(row)
    copied = Template.from_dict({"source": "{% set v = votes | list %}{{ v.pop() }}{{ v | length }}", "target": "x"})
    assert copied.render(row).source == "a0" and row == {"votes": ["a"], "nested": [["b"]]}


def test_a_separator_in_a_row_arrives_as_it_was_written():
    """Render a template of promptsource, which reads a separator as PIPE_PROTECTOR and may split a text there."""
    row = {"text": "Fog.|||||Rain ||| snow.|||||", "parts": ["a|||b", "c"]}
    jinja = (
        "{% set parts = text.split('"
        + PIPE_PROTECTOR
        + "||') %}{{ parts | join(' / ') }}: {{ text }} ||| {{ parts[1] }}"
    )
    template = Template.from_dict(convert({"jinja": jinja}, "x"))
    assert template.render(row).source == "Fog. / Rain ||| snow. / : Fog.|||||Rain ||| snow.|||||"
    assert template.render(row).target == "Rain ||| snow."
    closed = Template(
        "{{ text }}", "a", answer_choices="{{ parts | join(' ||| ') }}||| {{ text.split('|||||')[1] }}|||\ue000"
    )
    assert closed.choices(row) == ["a|||b", "c", "Rain ||| snow.", "\ue000"]
    assert closed.render(row).source == row["text"]


@pytest.mark.parametrize("templates", ["{}", "[]", "text"])
def test_a_file_without_templates_is_refused(tmp_path, templates):
    path = tmp_path / "templates.yaml"
    path.write_text(f"dataset: a\ntemplates: {templates}\n", encoding="utf-8")
    with pytest.raises(TemplateError, match="expected templates by id"):
        load_templates(path)
