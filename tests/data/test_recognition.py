"""init recognises task, columns and languages, whatever the columns are called, and asks for what rows do not show."""

import json
import os
from pathlib import Path

import pytest

from prompt_tuning.data.formats import numbered_rows
from prompt_tuning.data.languages import guess_language
from prompt_tuning.data.recognition import recognize
from prompt_tuning.errors import DataError

DATA = os.environ.get("PROMPT_TUNING_DATA")
"""A folder of public data sets, which no test needs and this repository does not have."""

SETS = {
    "qa-boolq": {"task": "question_answering", "lang": "en"},
    "qa-covidqa": {"task": "question_answering", "lang": "en"},
    "qa-newwiki": {"task": "question_answering", "lang": "en"},
    "summarization-meqsum": {"task": "summarization", "lang": "en"},
    "summarization-mts-dialog": {"task": "summarization", "text_column": "dialogue", "lang": "en"},
    "summarization-scitldr": {"task": "summarization", "lang": "en"},
    "translation-tatoeba-en-fr": {"task": "translation", "source_lang": "en", "target_lang": "fr"},
    "translation-tico19-en-fr": {"task": "translation", "source_lang": "en", "target_lang": "fr"},
}
PLACES = ["Turin", "Oslo", "Lima", "Kyoto", "Quito", "Porto", "Riga", "Perth", "Minsk", "Dakar"]


def ferries(number):
    """Make the texts of one row: a passage, a question, its answer, a summary, and the same in other languages."""
    place, year = PLACES[number % 10], 1900 + number
    return {
        "passage": f"The ferry of {place} was built of oak in {year} and it carried mail for years. It is now in "
        "the museum of the town, and the children of the school like to visit it.",
        "question": f"When was the ferry of {place} built?",
        "answer": str(year),
        "summary": f"The ferry of {place} is now in a museum.",
        "yes": "yes" if number % 2 else "no",
        "en": f"The ferry of {place} is in the port.",
        "fr": f"Le bateau de {place} est dans le port et il part.",
        "de": f"Das Schiff von {place} ist nicht in der Werft.",
        "zh_passage": f"{place}号渡船于{year}年用橡木建造，运送邮件四十年。现在它停在镇上的博物馆里。",
        "zh_question": f"{place}号渡船是哪一年建造的？",
        "zh_answer": f"{year}年",
        "zh": f"{place}号渡船停在港口里。",
    }


def rows(**columns):
    """Make 20 rows with texts of `ferries` under other names."""
    return [{name: ferries(number)[kind] for name, kind in columns.items()} for number in range(20)]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.skipif(
    DATA is None, reason="PROMPT_TUNING_DATA names no folder with qa-boolq and seven other public sets"
)
def test_public_sets_are_recognised_without_a_question(name):
    file = Path(str(DATA)) / name / "train.jsonl"
    assert recognize([row for _, row in numbered_rows(file)][:200], {}).settings == SETS[name]


@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        (
            {"context": "passage", "question": "question", "answers": "answer"},
            {"task": "question_answering", "lang": "en"},
        ),
        (
            {"title": "summary", "stuff": "passage", "ask": "question", "found": "answer"},
            {
                "task": "question_answering", "context_column": "stuff", "question_column": "ask",
                "answer_column": "found", "lang": "en",
            },
        ),
        (
            {"a": "zh_passage", "b": "zh_question", "c": "zh_answer"},
            {
                "task": "question_answering", "context_column": "a", "question_column": "b", "answer_column": "c",
                "lang": "zh",
            },
        ),
        (
            {"b": "question", "label": "yes", "a": "passage"},
            {
                "task": "question_answering", "context_column": "a", "question_column": "b",
                "answer_column": "label", "lang": "en",
            },
        ),
        (
            {"short": "summary", "long": "passage", "author": "yes"},
            {"task": "summarization", "text_column": "long", "summary_column": "short", "lang": "en"},
        ),
        (
            {"id": "answer", "text": "passage", "headline": "summary"},
            {"task": "summarization", "text_column": "text", "summary_column": "headline", "lang": "en"},
        ),
        ({"fr": "fr", "en": "en"}, {"task": "translation", "source_lang": "fr", "target_lang": "en"}),
        (
            {"id": "en", "en": "en", "fra_Latn": "fr"},
            {"task": "translation", "source_lang": "en", "target_lang": "fra_Latn"},
        ),
        (
            {"target": "fr", "source": "de"},
            {
                "task": "translation", "source_lang": "de", "source_column": "source", "target_lang": "fr",
                "target_column": "target",
            },
        ),
        (
            {"English": "en", "中文": "zh"},
            {
                "task": "translation", "source_lang": "en", "source_column": "English", "target_lang": "zh",
                "target_column": "中文",
            },
        ),
    ],
    ids=lambda value: "-".join(value) if "task" not in value else None,
)  # fmt: skip
def test_columns_are_recognised_by_their_names_or_their_texts(columns, settings):
    recognized = recognize(rows(**columns), {})
    assert recognized.settings == settings
    assert recognized.reasons["task"].endswith(".")


def test_what_a_user_sets_is_not_guessed():
    columns = {"context": "passage", "question": "question", "answers": "answer", "gist": "summary"}
    settings = recognize(rows(**columns), {"summary_column": "gist", "text_column": "context"}).settings
    assert settings == {"task": "summarization", "text_column": "context", "summary_column": "gist", "lang": "en"}
    pair = rows(en="en", fr="fr")
    for of_user in ({"source_lang": "fr"}, {"target_lang": "en"}):
        settings = recognize(pair, of_user).settings
        assert (settings["source_lang"], settings["target_lang"]) == ("fr", "en")
    assert recognize(pair, {}).choices == {"source_lang": ["en", "fr"]}
    settings = recognize(rows(x="en", y="fr"), {"source_column": "y", "target_column": "x"}).settings
    assert (settings["source_lang"], settings["target_lang"]) == ("fr", "en")


@pytest.mark.parametrize(
    ("columns", "of_user", "message"),
    [
        ({"text": "en", "label": "yes"}, {}, r"\('text', 'label'\) do not show the task. Set --task question_ans"),
        ({"a": "answer"}, {"task": "summarization"}, "which of them summarization reads. Set --task summarization"),
        ({"x": "answer", "y": "fr"}, {"source_column": "x", "target_column": "y"}, "the column 'x' is unknown"),
    ],
)
def test_rows_that_do_not_show_it_are_refused_with_the_flags_to_set(columns, of_user, message):
    with pytest.raises(DataError, match=message):
        recognize(rows(**columns), of_user)


def test_rows_of_any_json_are_recognised_or_refused():
    values = [None, True, 1.5, [], {}, [None], {"text": None}, {"text": [1]}, [["a"]], {"fr": None, "en": {}}, "a"]
    for value in values:
        for name in ("translation", "answers", "other"):
            try:
                recognize([{name: value, "question": value, "context": value}], {})
            except DataError as error:
                assert "Set --" in str(error)


def test_languages_are_told_by_script_and_frequent_words():
    texts = {
        "en": "The boat is in the port.", "fr": "Le bateau est dans le port.", "de": "Das Boot ist nicht im Hafen.",
        "es": "El barco está en el puerto.", "zh": "渡船在港口里。", "ja": "フェリーは港にあります。",
        "ru": "Корабль не в порту, и это он.", "uk": "Корабель у порту, і це не він.", "ko": "배는 항구에 있습니다.",
    }  # fmt: skip
    assert {code: guess_language([text]) for code, text in texts.items()} == {code: code for code in texts}
    assert guess_language(["Oslo 1871"]) is None and guess_language([]) is None
    assert guess_language(["Oslo repairs it to carry mail, to be sure"]) != "cs"  # English and Czech both have "to".
    assert json.dumps(guess_language(["ᚠᚢᚦ"])) == "null"  # Runes have no usual language.
