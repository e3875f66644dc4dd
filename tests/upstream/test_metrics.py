"""Show what rouge_score and SQuAD's script get wrong for Chinese. Each test fails as soon as they mend it."""

from rouge_score.rouge_scorer import RougeScorer

from prompt_tuning import load_metrics


def test_rouge_score_finds_no_chinese_word():
    """See evaluate#108 and evaluate#256."""
    text = "渡船离开了港口。"
    assert RougeScorer(["rouge1"], use_stemmer=True).score(text, text)["rouge1"].fmeasure == 0


def test_squads_script_finds_no_chinese_word_in_a_longer_answer():
    assert load_metrics(["squad"], language="en")(["渡船"], [["渡船离开"]])["f1"] == 0
