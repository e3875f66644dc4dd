"""chrF++ (Popović, 2017): the F-score of character and word n-grams, computed by sacreBLEU."""

from typing import Any

import evaluate
from sacrebleu.metrics import CHRF

from prompt_tuning.metrics.references import FEATURES, reference_streams


def corpus_chrf(language: str | None = None, word_order: int = 2, **options: Any) -> CHRF:
    """Return sacreBLEU's chrF++, which is the same for every language.

    Args:
        language: has no effect; BLEU and TER take it.
        word_order: the longest word n-gram; 2 is chrF++, 0 is chrF.
        **options: of `sacrebleu.metrics.CHRF`.
    """
    return CHRF(word_order=word_order, **options)


class Chrf(evaluate.Metric):
    """Corpus chrF++ in percent, with sacreBLEU's signature ("nw:2" says that it is chrF++ and not chrF)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Popović, 2017. chrF++: words helping character n-grams. https://aclanthology.org/W17-4770",
            inputs_description="""
Args:
    predictions: one text a row.
    references: one or more texts a row; rows may differ in their number.
    word_order: the longest word n-gram; 2 is chrF++, 0 is chrF.
    **options: the other options of `sacrebleu.metrics.CHRF`, such as `lowercase` or `whitespace`.
Returns:
    chrf: chrF++, 0 to 100.
    chrf_signature: sacreBLEU's signature.
""",
            features=FEATURES,
            reference_urls=["https://github.com/m-popovic/chrF", "https://github.com/mjpost/sacrebleu"],
        )

    def _compute(
        self, predictions: list[str], references: list[list[str]], word_order: int = 2, **options: Any
    ) -> dict[str, Any]:
        chrf = corpus_chrf(word_order=word_order, **options)
        score = chrf.corpus_score(predictions, reference_streams(references))
        return {"chrf": score.score, "chrf_signature": str(chrf.get_signature())}
