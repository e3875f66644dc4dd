"""ROUGE (Lin, 2004), computed by rouge_score, with tokens and sentences for all languages."""

import re

import evaluate
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from prompt_tuning.metrics.language import UNSPACED, characters, is_english, primary_language
from prompt_tuning.metrics.references import FEATURES, require_references
from prompt_tuning.support.text import without_signs

_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_CLOSERS = r"""["'”’»」』）】〉》)\]]*"""
# "." ends a sentence only before a space (not in "3.5"); the others stand in scripts which may put none after them:
# CJK, then the Devanagari danda, the marks of Arabic and Urdu, Ethiopic, Khmer and Burmese.
_SPACED_END = re.compile(rf"([.!?…]{_CLOSERS})\s+(?=(\S))")
_UNSPACED_END = re.compile(rf"([。！？｡।॥؟۔።។။]+{_CLOSERS})\s*(?=\S)")


def split_sentences(text: str) -> str:
    """Put each sentence on its own line, as rougeLsum wants them; a text that already has lines keeps them.

    A rule of thumb in place of nltk's punkt, whose data has to be downloaded: a sentence ends with . ! ? or … before
    whitespace, unless the next character is a lower-case letter, and with 。！？ and their like anywhere; closing
    quotes and brackets stay with it. Abbreviations ("Dr. Smith") are split, and Thai, Lao and Burmese text without
    such marks stays one sentence.

    >>> split_sentences('He came at 5.30 p.m. on foot. "Really?" She left.').splitlines()
    ['He came at 5.30 p.m. on foot.', '"Really?"', 'She left.']
    """
    text = text.strip()
    if "\n" in text:
        return text
    text = _SPACED_END.sub(lambda end: end[0] if end[2].islower() else end[1] + "\n", text)
    return _UNSPACED_END.sub(r"\1\n", text)


class UnicodeTokenizer(Tokenizer):
    """Words of any script, in lower case; characters for the languages that are written without spaces.

    rouge_score's own tokenizer keeps a to z and 0 to 9 alone and finds nothing in most scripts. Letters, digits and
    the marks that belong to them (the vowel signs of Hindi, which Python's `\\w` leaves out) make a word, invisible
    format characters vanish, and all else separates. There is no stemming.
    """

    def __init__(self, language: str):
        self._split = characters if language in UNSPACED else str.split

    def tokenize(self, text: str) -> list[str]:
        return self._split(without_signs(text.lower()))


class Rouge(evaluate.Metric):
    """Mean F-measure in percent of ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum; the best reference of each row counts."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=(
                "Lin, 2004. ROUGE: A Package for Automatic Evaluation of Summaries. https://aclanthology.org/W04-1013"
            ),
            inputs_description="""
Args:
    predictions: one text a row.
    references: one or more texts a row; rows may differ in their number, the maximum counts for each ROUGE type.
    language: none or "en" is rouge_score's tokenizer with the Porter stemmer; others have words of their own script,
        and characters for Chinese, Japanese, Thai, Lao, Khmer and Burmese.
Returns:
    rouge1, rouge2, rougeL, rougeLsum: 0 to 100; for rougeLsum the text is split into sentences if it has no lines.
""",
            features=FEATURES,
            reference_urls=["https://github.com/google-research/google-research/tree/master/rouge"],
        )

    def _compute(self, predictions, references, language=None):
        require_references(references)
        language = primary_language(language)
        tokenizer = None if is_english(language) else UnicodeTokenizer(language)
        scorer = RougeScorer(_TYPES, use_stemmer=True, tokenizer=tokenizer)
        rows = [
            scorer.score_multi([split_sentences(text) for text in texts], split_sentences(prediction))
            for prediction, texts in zip(predictions, references, strict=True)
        ]
        return {kind: 100.0 * sum(row[kind].fmeasure for row in rows) / len(rows) for kind in _TYPES}
