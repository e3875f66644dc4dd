"""SQuAD's scripts v1.1 and v2.0 and MLQA's by their names; each is written here from its definition."""

import random
import re
import string
import sys
import unicodedata
from collections import Counter

import pytest

from prompt_tuning.errors import RecipeError
from prompt_tuning.metrics.loading import load_metrics

# The words of random answers, split at spaces.
WORDS = {
    "en": "the The a an A.N. heron 1,250 don't “quoted” ﬁn ½ N° ～ ＋ é ! . the. İ ß straße",
    "es": "la el los LAS una casa vieja ¿cuándo? 3,5 km el. ÁRBOL « »",
    "de": "der Die das einem Haus groß 3,5 „alt“ – des Weges",
    "vi": "của là cái chiếc những nhà cũ 1.250 Hà Nội",
    "hi": "नाव गई। पुल दिल्ली 1871 , हाँ",
    "ar": "البيت ال القديم بيت ، ١٨٧١ الجسر؟",
    "zh": "渡船 《西游记》 1987年 １９８７ GPU Beyoncé 。 ～ ｶﾅ 㐀 ― 村　口",
}
PUNCTUATION = {chr(code) for code in range(sys.maxunicode) if unicodedata.category(chr(code)).startswith("P")}
PUNCTUATION |= set(string.punctuation)
MLQA_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": r"\sال^|ال",
}


def rows_of(language, counts, seed=0):
    """Return rows of random words. A quarter of the predictions is a reference, and some texts are empty."""
    rng = random.Random(seed)
    words = WORDS[language].split(" ")

    def text():
        return ("" if language == "zh" else " ").join(rng.choices(words, k=rng.randrange(5)))

    predictions, references = [], []
    for _ in range(200):
        references.append([text() for _ in range(rng.choice(counts))])
        copied = references[-1] and rng.random() < 0.25
        predictions.append(references[-1][-1] if copied else text())
    return predictions, references


def squad_normalise(text):
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def mlqa_normalise(text, language):
    text = "".join(character for character in text.lower() if character not in PUNCTUATION)
    text = re.sub(MLQA_ARTICLES[language], " ", text) if language in MLQA_ARTICLES else text
    if language != "zh":
        return " ".join(text.split())
    segments, waiting = [], ""
    for character in text:
        if re.search(r"[\u4e00-\u9fa5]", character):
            segments += [*waiting.split(), character]
            waiting = ""
        else:
            waiting += character
    return " ".join([*segments, *waiting.split()])


def f1_of_v1(prediction, gold):
    prediction, gold = prediction.split(), gold.split()
    same = sum((Counter(prediction) & Counter(gold)).values())
    if same == 0:
        return 0
    precision, recall = same / len(prediction), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def percentages(predictions, references, normalise, f1):
    exact, overlap = [], []
    for prediction, texts in zip(predictions, references, strict=True):
        exact.append(max(normalise(prediction) == normalise(text) for text in texts))
        overlap.append(max(f1(normalise(prediction), normalise(text)) for text in texts))
    return {"exact_match": 100 * sum(exact) / len(exact), "f1": 100 * sum(overlap) / len(overlap)}


def script_v2(predictions, references):
    def f1(prediction, gold):
        return float(prediction == gold) if not prediction or not gold else f1_of_v1(prediction, gold)

    def scores(numbers):
        golds = [[text for text in references[number] if squad_normalise(text)] or [""] for number in numbers]
        return percentages([predictions[number] for number in numbers], golds, squad_normalise, f1)

    answered = [number for number, texts in enumerate(references) if texts]
    unanswered = [number for number, texts in enumerate(references) if not texts]
    result = scores(range(len(references)))
    for prefix, numbers in (("has_answer", answered), ("no_answer", unanswered)):
        if unanswered and numbers:
            result |= {f"{prefix}_{key}": value for key, value in scores(numbers).items()}
    return result


@pytest.mark.parametrize("language", ["en", "zh", None])
@pytest.mark.parametrize("counts", [(1,), (1, 2, 3)])
def test_squad_v1_is_the_script_v1_in_every_language(language, counts):
    predictions, references = rows_of(language or "de", counts)
    ours = load_metrics(["squad_v1"], language=language)(predictions, references)
    assert ours == pytest.approx(percentages(predictions, references, squad_normalise, f1_of_v1))
    assert 10 < ours["exact_match"] < 90 and 10 < ours["f1"] < 90


@pytest.mark.parametrize("language", ["en", "zh", None])
@pytest.mark.parametrize("counts", [(0,), (1, 2), (0, 1, 3)])
def test_squad_v2_is_the_script_v2_with_its_scores_for_questions_with_and_without_an_answer(language, counts):
    predictions, references = rows_of(language or "de", counts)
    references = [[text for text in texts if text.strip()] for texts in references]
    expected = script_v2(predictions, references)
    assert load_metrics(["squad_v2"], language=language)(predictions, references) == pytest.approx(expected)
    if language != "zh":  # The default for English.
        assert load_metrics(["squad"])(predictions, references) == pytest.approx(expected)


@pytest.mark.parametrize("language", list(WORDS))
def test_mlqa_is_its_script_in_each_of_its_languages(language):
    predictions, references = rows_of(language, (1, 2))
    ours = load_metrics(["mlqa"], language=language)(predictions, references)
    expected = percentages(predictions, references, lambda text: mlqa_normalise(text, language), f1_of_v1)
    assert ours == pytest.approx(expected)
    assert 10 < ours["exact_match"] < 90


def test_the_scripts_differ_where_their_definitions_do():
    scores = {}
    for name in ("squad", "squad_v1", "squad_v2", "mlqa"):
        scores[name] = load_metrics([name], language="de")(["der Hafen", "«»"], [["Hafen"], ["the"]])["f1"]
    two_of_three = 200 / 3
    assert scores["squad"] == pytest.approx(two_of_three / 2)
    assert scores["squad_v1"] == pytest.approx(two_of_three / 2)
    assert scores["mlqa"] == pytest.approx(50)
    assert load_metrics(["squad_v1"])(["!"], [["The"]]) == {"exact_match": 100, "f1": 0}
    assert load_metrics(["squad_v2"])(["!"], [["The"]]) == {"exact_match": 100, "f1": 100}


@pytest.mark.parametrize("name", ["squad_v1", "mlqa"])
def test_scripts_without_unanswerable_questions_refuse_them(name):
    with pytest.raises(ValueError, match="row 1 has no reference"):
        load_metrics([name], language="en")(["a", "b"], [["a"], []])


@pytest.mark.parametrize("language", ["fr", None])
def test_mlqa_refuses_a_language_that_its_script_lacks(language):
    with pytest.raises(RecipeError, match=r"no rule for language .* Set lang to one of en, es, hi, vi, de, ar, zh"):
        load_metrics(["mlqa"], language=language)(["a"], [["a"]])


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_a_row_has_the_same_score_alone_and_among_rows_without_an_answer(name):
    """The report and the significance tests score rows alone."""
    predictions = ["unanswerable", "unanswerable", "a riddle"]
    references = [["an unanswerable riddle"], [], ["a riddle"]]
    score = load_metrics([name])
    alone = [score([text], [texts])["f1"] for text, texts in zip(predictions, references, strict=True)]
    assert score(predictions, references)["f1"] == pytest.approx(sum(alone) / 3)
    assert alone == [pytest.approx(200 / 3), 100, 100]


def test_full_width_letters_and_digits_equal_ordinary_ones():
    for language in ("zh", "ja", "ko"):
        scores = load_metrics(["squad", "rouge"], language=language)(["ＧＰＵ１９８７"], [["gpu1987"]])
        assert scores["exact_match"] == scores["f1"] == scores["rouge1"] == 100
