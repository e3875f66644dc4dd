"""Exact match and F1 of the SQuAD scripts v1.1 (Rajpurkar et al., 2016) and v2.0 (2018), for other languages too."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import compress

import evaluate

from prompt_tuning.metrics.language import UNSPACED, characters, is_english, primary_language
from prompt_tuning.metrics.references import FEATURES

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = frozenset(string.punctuation)


def answer_tokens(text: str, language: str | None = None) -> list[str]:
    """Normalise an answer to the tokens that are compared.

    English, and no language, follow SQuAD's scripts: lower case without ASCII punctuation and articles, split at
    whitespace. Other languages follow MLQA's script: all Unicode punctuation goes, articles stay. Unspaced languages
    are split into characters, as the scripts of MLQA and CMRC 2018 do.

    >>> answer_tokens("The U.S. Army!"), answer_tokens("《西游记》", "zh")
    (['us', 'army'], ['西', '游', '记'])
    """
    text = text.lower()
    if is_english(language):
        text = "".join(character for character in text if character not in _ASCII_PUNCTUATION)
        return _ARTICLES.sub(" ", text).split()
    text = "".join(character for character in text if not _is_punctuation(character))
    return characters(text) if language in UNSPACED else text.split()


def _is_punctuation(character: str) -> bool:
    # Unicode counts the full-width ～ and ＋ as symbols. NFKC maps them to the ASCII signs that are punctuation here.
    return (
        unicodedata.category(character).startswith("P")
        or unicodedata.normalize("NFKC", character) in _ASCII_PUNCTUATION
    )


def overlap_f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """Return the F1 of two bags of tokens: 1 for two empty answers, 0 for an empty one and another."""
    if not prediction or not gold:
        return float(prediction == gold)
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
    no_answer: the words for "there is no answer" in a prediction. They count as the empty answer if some row has no
        answer, and as ordinary words if all rows have one.
Returns:
    exact_match, f1: 0 to 100.
    has_answer_exact_match, has_answer_f1, no_answer_exact_match, no_answer_f1: the same for the rows with and the
        rows without an answer, if there are rows without.
""",
            features=FEATURES,
            reference_urls=["https://rajpurkar.github.io/SQuAD-explorer/", "https://github.com/facebookresearch/MLQA"],
        )

    def _compute(self, predictions, references, language=None, no_answer="unanswerable"):
        language = primary_language(language)
        answerable = [any(map(str.strip, texts)) for texts in references]
        no_answer_tokens = None if all(answerable) else answer_tokens(no_answer, language)

        exact = []
        f1 = []
        for prediction, texts in zip(predictions, references, strict=True):
            predicted = answer_tokens(prediction, language)
            if predicted == no_answer_tokens:
                predicted = []
            golds = [answer_tokens(text, language) for text in texts]
            # The script of v2.0 does not count a reference that is empty after normalisation beside others.
            golds = list(filter(None, golds)) or [[]]
            exact.append(float(predicted in golds))
            f1.append(max(overlap_f1(predicted, gold) for gold in golds))

        result = {"exact_match": _percent(exact), "f1": _percent(f1)}
        if not all(answerable):
            without = [not has_answer for has_answer in answerable]
            for prefix, selectors in (("has_answer", answerable), ("no_answer", without)):
                if any(selectors):
                    result[f"{prefix}_exact_match"] = _percent(list(compress(exact, selectors)))
                    result[f"{prefix}_f1"] = _percent(list(compress(f1, selectors)))
        return result
