"""Exact match and F1 of the SQuAD scripts v1.1 (Rajpurkar et al., 2016) and v2.0 (2018), and of MLQA's (2020)."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from typing import Any

import evaluate

from prompt_tuning.errors import RecipeError
from prompt_tuning.metrics.language import UNSPACED, characters, is_english, narrow, primary_language
from prompt_tuning.metrics.references import FEATURES, require_references

_ASCII_PUNCTUATION = frozenset(string.punctuation)
_ENGLISH_ARTICLES = re.compile(r"\b(a|an|the)\b")
# The languages of MLQA with the articles that its script removes. It reads the Arabic pattern as it stands here.
_MLQA_ARTICLES = {
    "en": _ENGLISH_ARTICLES,
    "es": re.compile(r"\b(un|una|unos|unas|el|la|los|las)\b"),
    "hi": None,
    "vi": re.compile(r"\b(của|là|cái|chiếc|những)\b"),
    "de": re.compile(r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b"),
    "ar": re.compile(r"\sال^|ال"),
    "zh": None,
}
_MLQA_CHINESE = re.compile(r"[\u4e00-\u9fa5]|[^\s\u4e00-\u9fa5]+")
_NO_ANSWER = {"zh": ("无法回答", "unanswerable")}
# These scripts know no question without an answer.
_ALL_ANSWERED = ("v1.1", "mlqa")


def answer_tokens(text: str, language: str | None = None) -> list[str]:
    """Normalise an answer to the tokens that are compared, if no script is named.

    English, and no language, follow SQuAD's scripts: lower case without ASCII punctuation and articles, split at
    whitespace. Other languages lose all Unicode punctuation and keep their articles. Full-width letters and digits
    equal ordinary ones. Unspaced languages are split into characters, as the scripts of MLQA and CMRC 2018 do.

    >>> answer_tokens("The U.S. Army!"), answer_tokens("《西游记》", "zh"), answer_tokens("１９８７年", "zh")
    (['us', 'army'], ['西', '游', '记'], ['1987', '年'])
    """
    if is_english(language):
        return _squad_tokens(text)
    text = _without_punctuation(narrow(text).lower())
    return characters(text) if language in UNSPACED else text.split()


def _squad_tokens(text: str) -> list[str]:
    text = "".join(character for character in text.lower() if character not in _ASCII_PUNCTUATION)
    return _ENGLISH_ARTICLES.sub(" ", text).split()


def _mlqa_tokens(text: str, language: str | None) -> list[str]:
    if language not in _MLQA_ARTICLES:
        languages = ", ".join(_MLQA_ARTICLES)
        raise RecipeError(
            f"metric mlqa: its script has no rule for language {language}. Set lang to one of {languages}."
        )
    text = _without_punctuation(text.lower())
    articles = _MLQA_ARTICLES[language]
    if articles:
        text = articles.sub(" ", text)
    return _MLQA_CHINESE.findall(text) if language == "zh" else text.split()


def _without_punctuation(text: str) -> str:
    kept = []
    for character in text:
        if character not in _ASCII_PUNCTUATION and not unicodedata.category(character).startswith("P"):
            kept.append(character)
    return "".join(kept)


def overlap_f1(prediction: Sequence[str], gold: Sequence[str], *, empty: float) -> float:
    """Return the F1 of two bags of tokens: 0 for an empty answer and another.

    Args:
        prediction: tokens.
        gold: tokens.
        empty: the F1 of two empty answers. It is 1 in SQuAD v2.0, and 0 in v1.1 and MLQA.
    """
    if not prediction and not gold:
        return empty
    common = (Counter(prediction) & Counter(gold)).total()
    return 2 * common / (len(prediction) + len(gold))


def _percent(values: Sequence[float]) -> float:
    return 100.0 * sum(values) / len(values)


class Squad(evaluate.Metric):
    """SQuAD's exact match and F1 in percent; the best reference of each row counts."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=(
                "Rajpurkar et al., 2018. Know What You Don't Know: Unanswerable Questions for SQuAD. "
                "https://aclanthology.org/P18-2124"
            ),
            inputs_description="""
Args:
    predictions: one answer a row; an empty one says that there is no answer.
    references: the answers of a row. A question without an answer has none, or only empty texts.
    language: decides how answers are normalised and split, see `answer_tokens`. F1 is SQuAD's overlap of tokens for
        all languages. The script of CMRC 2018 takes the longest common substring of characters instead.
    script: "v1.1" or "v2.0" follows that script of SQuAD in every language, though its rules are for English. "mlqa"
        follows MLQA's script in its languages. None is v2.0 for English, and `answer_tokens` for other languages.
        v1.1 and mlqa need an answer to each question.
    no_answer: the words for "there is no answer" in a prediction; by default "unanswerable", and in Chinese also
        "无法回答", as the shipped templates write them. They count as the empty answer to a question that has no
        answer, and as ordinary words otherwise. v1.1 and mlqa do not read them.
Returns:
    exact_match, f1: 0 to 100.
    has_answer_exact_match, has_answer_f1, no_answer_exact_match, no_answer_f1: the same for the rows with and the
        rows without an answer, if there are rows without. The script calls them HasAns and NoAns.
""",
            features=FEATURES,
            reference_urls=["https://rajpurkar.github.io/SQuAD-explorer/", "https://github.com/facebookresearch/MLQA"],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        language: str | None = None,
        script: str | None = None,
        no_answer: str | None = None,
    ) -> dict[str, Any]:
        language = primary_language(language)
        if script in _ALL_ANSWERED:
            require_references(references)
        tokenizers: dict[str | None, Callable[[str], list[str]]] = {
            None: partial(answer_tokens, language=language),
            "v1.1": _squad_tokens,
            "v2.0": _squad_tokens,
            "mlqa": partial(_mlqa_tokens, language=language),
        }
        tokens = tokenizers[script]
        no_answer_words = [no_answer] if no_answer else _NO_ANSWER.get(str(language), ("unanswerable",))
        no_answer_tokens = list(map(tokens, no_answer_words))
        exact = []
        f1 = []
        for prediction, texts in zip(predictions, references, strict=True):
            predicted = tokens(prediction)
            golds = [tokens(text) for text in texts]
            if script not in _ALL_ANSWERED:
                # The script of v2.0 does not count a reference that is empty after normalisation beside others.
                golds = list(filter(None, golds)) or [[]]
                if golds == [[]] and predicted in no_answer_tokens:
                    predicted = []
            exact.append(float(predicted in golds))
            empty = 0.0 if script in _ALL_ANSWERED else 1.0
            f1.append(max(overlap_f1(predicted, gold, empty=empty) for gold in golds))

        result = {"exact_match": _percent(exact), "f1": _percent(f1)}
        has_answer = [any(map(str.strip, texts)) for texts in references]
        if script not in _ALL_ANSWERED and not all(has_answer):
            no_answer_rows = [not answered for answered in has_answer]
            for prefix, selectors in (("has_answer", has_answer), ("no_answer", no_answer_rows)):
                if any(selectors):
                    result[f"{prefix}_exact_match"] = _percent(list(compress(exact, selectors)))
                    result[f"{prefix}_f1"] = _percent(list(compress(f1, selectors)))
        return result
