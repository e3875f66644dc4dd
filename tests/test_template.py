"""Hard prompts: what they need is known before any row is read, and rows cannot make them do anything else."""

import pytest
import yaml

from prompt_tuning.config import TASKS
from prompt_tuning.errors import TemplateError
from prompt_tuning.template import Template, language_variables, shipped_templates

FRENCH = language_variables("fr", "en")
ROW = {
    "context": "Ada lives in Turin.",
    "question": "Where does Ada live?",
    "answers": {"text": ["Turin", "in Turin"], "answer_start": [13, 10]},
    "document": "A long story about Ada.",
    "summary": "Ada.",
    "translation": {"fr": "Bonjour.", "en": "Good morning."},
}


@pytest.mark.parametrize("name", shipped_templates())
def test_shipped_templates_render_and_survive_being_saved(name):
    template = Template.load(name)
    rendered = template.render(ROW, FRENCH)
    target = {"question_answering": "Turin", "summarization": "Ada.", "translation": "Good morning."}[
        name.split("/")[0]
    ]
    assert rendered.target == target and target in rendered.references
    assert target not in rendered.source.replace(ROW["context"], "").replace(ROW["document"], "")
    assert Template.from_dict(yaml.safe_load(template.to_yaml()), name) == template


def test_each_task_has_at_least_three():
    for task in TASKS:
        assert sum(name.startswith(f"{task}/") for name in shipped_templates()) >= 3


def test_columns_are_known_without_a_row():
    template = Template.load("question_answering/plain")
    assert template.source_columns == {"context", "question"}
    assert template.columns == {"context", "question", "answers"}
    assert Template.load("translation/instruction").columns == {"translation"}  # languages are settings, not columns


def test_data_without_a_column_is_refused_with_both_sides_named():
    with pytest.raises(TemplateError) as caught:
        Template.load("summarization/plain").check_columns(["dialogue", "summary"], "train.jsonl")
    message = str(caught.value)
    assert "needs the column 'document'" in message and "train.jsonl has 'dialogue', 'summary'" in message
    assert "--text_column" in message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ context.__init__.__globals__ }}",
        "{{ answers.update({'text': []}) }}",
        "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_templates_run_in_a_sandbox(source):
    with pytest.raises(TemplateError):
        Template(source=source, target="x").render(ROW)


def test_a_row_cannot_smuggle_a_template_in():
    row = ROW | {"context": "{{ 7 * 7 }}"}
    assert "{{ 7 * 7 }}" in Template.load("question_answering/plain").render(row).source


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answers": None}, "'None' has no attribute 'text'|None.*text"),
        ({"answers": {"text": []}}, "no element 0"),
        ({"answers": {"text": [""]}}, "the target is empty"),
        ({"question": None}, "a value it prints is null"),
    ],
)
def test_a_row_without_an_answer_is_an_error_and_not_the_word_none(row, message):
    with pytest.raises(TemplateError, match=message):
        Template.load("question_answering/plain").render(ROW | row)


def test_unanswerable_questions_have_a_target_and_no_references():
    rendered = Template.load("question_answering/unanswerable").render(ROW | {"answers": {"text": []}})
    assert rendered.target == "unanswerable" and rendered.references == ()


def test_demonstrations_and_system_come_before_the_source():
    template = Template(
        source="Q: {{ question }}", target="{{ answers.text[0] }}", system="Be brief.",
        demonstrations=({"question": "Where is Oslo?", "answers": {"text": ["Norway"]}},),
    )  # fmt: skip
    rendered = template.render(ROW)
    assert [message["role"] for message in rendered.messages] == ["system", "user", "assistant", "user"]
    assert rendered.source == "Be brief.\n\nQ: Where is Oslo? Norway\n\nQ: Where does Ada live?"
    assert template.columns == {"question", "answers"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("source: a", "expected the fields source and target, found source"),
        ("source: a\ntarget: b\nstops: [x]", "unknown field stops"),
        ("source: '{{ a'\ntarget: b", "unexpected end of template"),
        ("source: a\ntarget: b\nreferences: '[['", "template"),
        ("source: [", "not YAML"),
        ("source: !!python/object/apply:os.system ['true']\ntarget: b", "not YAML"),
    ],
)
def test_a_broken_template_file_is_named_with_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(TemplateError, match=r"mine.yaml") as caught:
        Template.load(path)
    assert message in str(caught.value)


def test_unknown_names_get_the_nearest(tmp_path):
    with pytest.raises(TemplateError, match="did you mean question_answering/plain"):
        Template.load("question_answering/plane")
    with pytest.raises(TemplateError, match="no such file"):
        Template.load(tmp_path / "none.yaml")


def test_languages_have_names_and_unknown_codes_stand_for_themselves():
    assert (
        FRENCH["source_language"] == "French" and language_variables("xx", "pt_BR")["target_language"] == "Portuguese"
    )
    assert language_variables("xx", None) == {"source_lang": "xx", "source_language": "xx"}
