"""Shapes of public data sets: a template reads answers, translations and documents in any of them."""

import pytest

from prompt_tuning import Template
from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.loading import load_splits, with_standard_columns
from prompt_tuning.errors import TemplateError
from prompt_tuning.support.yaml_files import to_yaml
from prompt_tuning.templates.languages import language_variables
from prompt_tuning.templates.preview import rename_columns
from prompt_tuning.templates.template import load_templates

QUESTION = {"context": "Ada lives in Turin.", "question": "Where?", "choices": ["Turin", "Oslo", "unanswerable"]}
LANGUAGES = language_variables("fr", "en")


def rendered(name, row, languages=None):
    template = Template.load(name)
    shown = template.render(row, languages)
    return shown.target, shown.references


@pytest.mark.parametrize(
    ("answers", "texts"),
    [
        ({"text": ["Turin", "in Turin"], "answer_start": [13, 10]}, ("Turin", "in Turin")),
        ({"text": "Turin", "answer_start": 13}, ("Turin",)),
        ([{"text": "Turin", "answer_start": 13}, {"text": "in Turin", "answer_start": 10}], ("Turin", "in Turin")),
        (["Turin", "in Turin"], ("Turin", "in Turin")),
        ("Turin", ("Turin",)),
        (True, ("yes",)),
        ([False], ("no",)),
        (1871, ("1871",)),
    ],
)
def test_answers_of_every_shape_are_texts(answers, texts):
    assert rendered("question_answering/plain", QUESTION | {"answers": answers}) == (texts[0], texts)


@pytest.mark.parametrize("answers", [{"text": [], "answer_start": []}, []])
@pytest.mark.parametrize("name", load_templates("question_answering")[0])
def test_a_question_without_an_answer_has_a_target_in_every_shipped_template(name, answers):
    target = "无法回答" if "/zh_" in name else "unanswerable"
    assert rendered(name, QUESTION | {"answers": answers}) == (target, ())


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("", "the target is empty"),
        ([""], "the target is empty"),
        (
            {"spans": ["Turin"]},
            r"has no attribute 'text'. The column answers holds a mapping. Write a text, a list of texts",
        ),
        ("{'text': array(['Turin'], dtype=object)}", "The column answers holds a text"),
        ([None], "The column answers holds a list"),
        (None, "The column answers holds null"),
        ({"text": None}, "null"),
    ],
)
def test_answers_of_no_known_shape_are_an_error(answers, message):
    with pytest.raises(TemplateError, match=message):
        rendered("question_answering/t5", QUESTION | {"answers": answers})


def test_a_template_that_reads_a_column_as_it_is_gets_it_so():
    for answers, target in (
        (["Turin", "Oslo"], "{{ answers[1] }}"),
        ("Oslo", "{{ answers }}"),
        ({"text": "Oslo"}, "{{ answers.text }}"),
        ([{"text": "Oslo"}], "{% for answer in answers %}{{ answer['text'] }}{% endfor %}"),
    ):
        assert Template("{{ question }}", target).render(QUESTION | {"answers": answers}).target == "Oslo"
    document = Template("{{ document | join('\n') }}", "x").render({"document": ["One.", "Two."]})
    assert document.source == "One.\nTwo."


@pytest.mark.parametrize(
    ("translation", "texts"),
    [
        ({"fr": "Bonjour", "en": "Hello"}, ("Hello",)),
        ({"fr": "Bonjour", "en": ["Hello", "Good day"]}, ("Hello", "Good day")),
        ({"language": ["en", "fr", "en"], "translation": ["Hello", "Bonjour", "Good day"]}, ("Hello", "Good day")),
        ([{"fr": "Bonjour"}, {"en": "Hello"}], ("Hello",)),
        ([{"language": "fr", "text": "Bonjour"}, {"lang": "en", "translation": "Hello"}], ("Hello",)),
    ],
)
@pytest.mark.parametrize("name", load_templates("translation")[0])
def test_translations_of_every_shape_are_texts_in_every_shipped_template(name, translation, texts):
    row = {"translation": translation}
    assert rendered(name, row, LANGUAGES) == (texts[0], texts)
    assert "Bonjour" in Template.load(name).render(row, LANGUAGES).source


@pytest.mark.parametrize(
    "pair",
    [
        {"fr": "Bonjour", "en": "Hello"},
        {"sentence_fr": "Bonjour", "sentence_en": "Hello", "URL": "x"},
        {"sourceLang": "fr", "targetLang": "en", "sourceString": "Bonjour", "targetString": "Hello"},
        {"sourceLang": "en", "targetLang": "fr", "sourceString": "Hello", "targetString": "Bonjour"},
    ],
)
def test_two_columns_are_a_translation_in_training_prediction_and_preview(tmp_path, pair):
    args = DataArguments(
        task="translation", train_file=str(tmp_path / "pairs.csv"), source_lang="fr", target_lang="en"
    )
    (tmp_path / "pairs.csv").write_text(f"{','.join(pair)}\n{','.join(pair.values())}\n", encoding="utf-8")
    expected = {"fr": "Bonjour", "en": "Hello"}
    assert load_splits(args)["train"][0]["translation"] == expected
    assert with_standard_columns(pair, args)["translation"] == expected
    assert rename_columns(pair, vars(args), "fr", "en")[0]["translation"] == expected


def test_a_document_of_sentences_is_one_text_and_is_cut():
    row = {"document": ["One.", "Two."], "summary": ["One", "Two"]}
    for name, template in load_templates("summarization")[0].items():
        shown = template.render(row, {})
        assert "One. Two." in shown.source and shown.references == ("One", "Two"), name
    assert template.standard_row(row)["document"] == "One. Two."


def test_a_copy_of_a_shipped_template_reads_the_same_shapes(tmp_path):
    template = Template.load("question_answering/few_shot")
    (tmp_path / "mine.yaml").write_text(template.to_yaml())
    row = QUESTION | {"answers": "Turin"}
    assert Template.load(tmp_path / "mine.yaml").render(row) == template.render(row)
    demonstration = to_yaml({"source": "{{ question }}", "target": "{{ answers.text[0] }}"})
    (tmp_path / "own.yaml").write_text(demonstration + "demonstrations:\n- {question: When?, answers: In May}\n")
    assert [turn["content"] for turn in Template.load(tmp_path / "own.yaml").render(row).messages] == [
        "When?", "In May", "Where?"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("translation", "message"),
    [
        (
            {"de": "Guten Tag", "en": "Hello"},
            "The languages of the column translation are 'de', 'en'",
        ),
        (["Bonjour", "Hello"], "The column translation holds a list. Write {code: text} with the codes of both"),
        ("Bonjour", "The column translation holds a text"),
    ],
)
def test_a_translation_of_no_known_shape_is_named(translation, message):
    with pytest.raises(TemplateError, match=message):
        rendered("translation/plain", {"translation": translation}, LANGUAGES)


def test_an_error_about_another_column_has_no_hint():
    row = {"meta": {"a": "b"}, "answers": {"text": ["Turin"]}, "translation": {"de": "x"}}
    for source in ("{{ meta.text }}", "{{ meta.other }}", "{{ translation.other }}"):
        with pytest.raises(TemplateError, match=r"has no attribute '\w+'$"):
            Template(source, "x").render(row, LANGUAGES)
