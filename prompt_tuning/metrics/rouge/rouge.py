"""ROUGE (Lin, 2004), computed by rouge_score, with tokens and sentences for all languages."""

import re
from typing import Any

import evaluate
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

from prompt_tuning.metrics.language import UNSPACED, characters, is_english, narrow, primary_language
from prompt_tuning.metrics.references import FEATURES, require_references
from prompt_tuning.support.text import without_signs

_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_CLOSERS = r"""["'”’»」』）】〉》)\]]*"""
# "." ends a sentence only before a space, so "3.5" stays whole. The scripts of the other marks may put no space after
# them: CJK, then the Devanagari danda, the marks of Arabic and Urdu, Ethiopic, Khmer and Burmese.
_SPACED_END = re.compile(rf"([.!?…]{_CLOSERS})\s+(?=(\S))")
_UNSPACED_END = re.compile(rf"([。！？｡।॥؟۔።។။]+{_CLOSERS})\s*(?=\S)")


def split_sentences(text: str) -> str:
    """Put each sentence on a line, which rougeLsum needs. A text that already has lines keeps them.

    A sentence ends with . ! ? or … before whitespace, unless the next character is a lower-case letter. It ends with
    。！？ and similar marks anywhere. Closing quotes and brackets belong to the sentence. Abbreviations ("Dr. Smith")
    are split, and Thai, Lao and Burmese text without such marks stays one sentence. This rule of thumb replaces nltk's
    punkt, whose data has to be downloaded.

    >>> split_sentences('He came at 5.30 p.m. on foot. "Really?" She left.').splitlines()
    ['He came at 5.30 p.m. on foot.', '"Really?"', 'She left.']
    """
    text = text.strip()
    if "\n" in text:
        return text
    text = _SPACED_END.sub(lambda end: end[0] if end[2].islower() else end[1] + "\n", text)
    return _UNSPACED_END.sub(r"\1\n", text)


class UnicodeTokenizer(Tokenizer):
    """Words of any script, in lower case, or characters for the languages without spaces between words.

    Unlike rouge_score's tokenizer, which keeps only a to z and 0 to 9, it finds words in all scripts. Letters, digits
    and their marks make a word; the vowel signs of Hindi are marks. Invisible format characters vanish, and all other
    characters separate words. Full-width letters and digits equal ordinary ones. Words are not stemmed.

    Args:
        language: ISO 639-1.
    """

    def __init__(self, language: str) -> None:
        """Choose how a text is split."""
        self._split = characters if language in UNSPACED else str.split

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        return self._split(without_signs(narrow(text).lower()))


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
    references: one or more texts a row; rows may differ in their number. The best one counts for each ROUGE type.
    language: none or "en" is rouge_score's tokenizer with the Porter stemmer. Other languages have words of any
        script, and characters for Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan.
Returns:
    rouge1, rouge2, rougeL, rougeLsum: 0 to 100; for rougeLsum the text is split into sentences if it has no lines.
""",
            features=FEATURES,
            reference_urls=["https://github.com/google-research/google-research/tree/master/rouge"],
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], language: str | None = None
    ) -> dict[str, Any]:
        require_references(references)
        language = primary_language(language)
        # Without a tokenizer RougeScorer logs a line, for which absl gives the root logger a handler: then every
        # message of the process is printed twice.
        tokenizer = DefaultTokenizer(use_stemmer=True) if is_english(language) else UnicodeTokenizer(str(language))
        scorer = RougeScorer(_TYPES, tokenizer=tokenizer)
        rows = []
        for prediction, texts in zip(predictions, references, strict=True):
            rows.append(scorer.score_multi(list(map(split_sentences, texts)), split_sentences(prediction)))
        return {kind: 100.0 * sum(row[kind].fmeasure for row in rows) / len(rows) for kind in _TYPES}
