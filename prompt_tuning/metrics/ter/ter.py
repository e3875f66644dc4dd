"""Translation edit rate (Snover et al., 2006), computed by sacreBLEU."""

from typing import Any

import evaluate
from sacrebleu.metrics import TER

from prompt_tuning.metrics.language import primary_language
from prompt_tuning.metrics.references import FEATURES, reference_streams


def corpus_ter(language: str | None = None, **options: Any) -> TER:
    """Return sacreBLEU's TER for a language.

    Args:
        language: of the texts. Chinese and Japanese turn `normalized` and `asian_support` on.
        **options: of `sacrebleu.metrics.TER`.
    """
    asian = primary_language(language) in ("zh", "ja")
    return TER(**{"normalized": asian, "asian_support": asian} | options)


class Ter(evaluate.Metric):
    """Corpus TER in percent, lower is better, with sacreBLEU's signature."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=(
                "Snover et al., 2006. A Study of Translation Edit Rate with Targeted Human Annotation. "
                "https://aclanthology.org/2006.amta-papers.25"
            ),
            inputs_description="""
Args:
    predictions: one text a row.
    references: one or more texts a row; rows may differ in their number.
    language: Chinese and Japanese turn `normalized` and `asian_support` on, which splits ideographs. Tercom has no
        such rule for Thai, Lao, Khmer, Burmese and Tibetan, whose text between two spaces counts as one word.
    **options: the options of `sacrebleu.metrics.TER`, such as `case_sensitive`. They replace the choice of the
        language.
Returns:
    ter: edits for every 100 words of the reference. 0 is best, and it can be more than 100.
    ter_signature: sacreBLEU's signature.
""",
            features=FEATURES,
            reference_urls=["https://github.com/jhclark/tercom", "https://github.com/mjpost/sacrebleu"],
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], language: str | None = None, **options: Any
    ) -> dict[str, Any]:
        ter = corpus_ter(language, **options)
        score = ter.corpus_score(predictions, reference_streams(references))
        return {"ter": score.score, "ter_signature": str(ter.get_signature())}
