"""A template's literals are found where it writes them, and marks of `{% soft %}` change nothing of its texts."""

import pytest

from prompt_tuning import Template
from prompt_tuning.errors import TemplateError
from prompt_tuning.templates.literals import MARK, literals, locate
from prompt_tuning.templates.template import load_templates

MARKED = (
    "{{ context }}\n\n{% soft %}Question:{% endsoft %} {{ question }}\n"
    "{% for fact in facts %}\n{% soft %}- {{ fact }};{% endsoft %}{{ ' ' }}{% endfor %}"
    "{% if hint %}\nHint: {{ hint }}\n{% else %}\nNone.\n{% endif %}\n{% soft %}Answer:{% endsoft %}"
)
ROW = {"context": "Ada.", "question": "Who?", "facts": ["one", "two"], "hint": None}


def template(source, **fields):
    return Template.from_dict({"source": source, "target": "x"} | fields)


def found(of, row, part):
    """Return for every message the texts at the places of its literals, checked against the template's own."""
    texts = literals(of, None, part)
    rendered, spans_of_messages = locate(of, row, None, part)
    assert rendered == of.render(row, with_target=False)
    messages = []
    for message, spans in zip(rendered.messages, spans_of_messages, strict=True):
        messages.append([message["content"][span.start : span.end] for span in spans])
        for place, span in zip(messages[-1], spans, strict=True):
            assert texts[span.literal][span.skipped :].startswith(place)
    return messages


def test_a_mark_changes_nothing_of_what_a_template_writes_and_reads():
    marked, plain = template(MARKED), template(MARKED.replace("{% soft %}", "").replace("{% endsoft %}", ""))
    for row in (ROW, ROW | {"hint": "yes", "facts": []}):
        assert marked.render(row) == plain.render(row)
        assert marked.common_prefix() == plain.common_prefix()
    assert marked.columns == plain.columns == {"context", "question", "facts", "hint"}
    assert literals(marked, None, "all") == literals(plain, None, "all")
    assert Template.from_dict({"source": marked.source, "target": "x"}).to_yaml() == marked.to_yaml()


def test_each_part_names_its_literals_in_branches_and_loops():
    of = template(MARKED, system="Be {{ question }} brief.", demonstrations=[ROW | {"context": "Bob."}])
    assert literals(of, None, "ending") == ("Answer:",)
    assert literals(of, None, "marked") == ("Question:", "- ", ";", "Answer:")
    assert literals(of, None, "all")[0] == "\n\nQuestion: " and literals(of, None, "all")[-2:] == ("Be ", " brief.")
    assert found(of, ROW, "ending") == [[], [], [], ["Answer:"]]  # system, demonstration, its target, the row
    of_row = ["Question:", "- ", ";", "- ", ";", "Answer:"]
    assert found(of, ROW, "marked") == [[], of_row, [], of_row]
    assert found(of, ROW, "all")[0] == ["Be ", " brief."]
    # In `all` the fixed text of the branch that is written counts, and that of the other one does not.
    assert "None.\n" in found(of, ROW, "all")[3] and "Hint: " not in found(of, ROW, "all")[3]
    assert "Hint: " in found(of, ROW | {"hint": "h"}, "all")[3]


def test_the_same_literal_in_a_loop_has_one_number():
    _, [spans] = locate(template(MARKED), ROW, None, "marked")
    assert [span.literal for span in spans] == [0, 1, 2, 1, 2, 3]


def test_a_trimmed_template_has_its_literals_without_the_spaces_at_its_ends():
    of = template("{% filter trim %}  So: {{ a }} is?\n {% endfilter %}")
    assert found(of, {"a": " b"}, "all") == [["So: ", " is?"]]
    assert found(of, {"a": " b"}, "ending") == [[" is?"]]


def test_text_that_a_variable_may_change_is_no_literal():
    of = template("{% set head %}Note {{ a }}{% endset %}{{ head | upper }} {{ a }}!")
    assert literals(of, None, "all") == (" ", "!")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "{% soft %}a{% soft %}b{% endsoft %}{% endsoft %}"}, "a soft block stands within another"),
        ({"source": "{% soft %}a"}, "endsoft"),
        ({"source": "a", "target": "{% soft %}x{% endsoft %}"}, "target has a soft block"),
        ({"source": "a", "answer_choices": "{% soft %}x{% endsoft %} ||| y"}, "answer_choices has a soft block"),
        ({"source": "{% set a %}{% soft %}x{% endsoft %}{% endset %}{{ a }}"}, "the soft block in line 1 of source"),
        (
            {"source": "b", "system": "a\n{% filter upper %}{% soft %}x{% endsoft %}{% endfilter %}"},
            "line 2 of system",
        ),
    ],
)
def test_a_mark_in_a_wrong_place_is_refused(fields, message):
    with pytest.raises(TemplateError, match=message):
        Template.from_dict({"target": "x"} | fields)


@pytest.mark.parametrize(
    ("source", "part", "message"),
    [
        ("Say {{ a }}", "ending", "its source ends with a column"),
        ("Say {{ a }}{% if b %}.{% endif %}", "ending", "its source ends with a column, a branch"),
        ("{{ a }}", "all", "it has no fixed text"),
        ("Say {{ a }}.", "marked", "it marks no text"),
        (f"Say{MARK} {{{{ a }}}}.", "all", r"U\+10FFFE"),
    ],
)
def test_a_template_without_the_literals_is_refused(source, part, message):
    with pytest.raises(TemplateError, match=message):
        literals(template(source), None, part)


def test_a_row_that_holds_the_mark_is_refused():
    with pytest.raises(TemplateError, match=r"the row: a text holds U\+10FFFE"):
        locate(template("Say {{ a }}."), {"a": f"{MARK}0{MARK}"}, None, "all")


def test_the_name_of_a_language_is_fixed_text_unless_the_template_changes_it():
    languages = {"source_lang": "fr", "source_language": "French", "target_lang": "en", "target_language": "English"}
    source = "{{ source_language }}: {{ text }}\n{{ target_language | upper }} ({{ target_lang }}):"
    of = template(source)
    assert literals(of, languages, "all") == ("French: ", "\nENGLISH (en):")
    assert literals(of, languages, "ending") == ("\nENGLISH (en):",)
    assert literals(of, None, "ending") == ("):",)
    _, [spans] = locate(of, {"text": "Oui", "target_lang": "a column of the row"}, languages, "all")
    assert [(span.start, span.end) for span in spans] == [(0, 8), (11, 25)]
    of = template("{% set target_language = text %}" + source)
    assert literals(of, languages, "ending") == (" (en):",)


def test_every_shipped_template_has_its_literals():
    shipped, _ = load_templates()
    del shipped["conversation/messages"]  # It writes the turns of the row and nothing else.
    for of in shipped.values():
        assert "".join(literals(of, None, "all"))
