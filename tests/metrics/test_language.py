"""The language of texts: recognised by their script, asked for before a model loads, and equal in all metrics."""

import json
import random

import pytest
from helpers.models import forbid_model_loading
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER

from prompt_tuning.cli.main import main
from prompt_tuning.metrics.language import language_of_script
from prompt_tuning.metrics.loading import load_metrics
from prompt_tuning.metrics.rouge.rouge import split_sentences

TEXTS = {
    "zh": "渡船在大雾散去之前离开了港口。",
    "ja": "霧が晴れる前にフェリーは港を出ました。",
    "ko": "안개가 걷히기 전에 배가 항구를 떠났다.",
    "th": "เรือออกจากท่าก่อนหมอกจาง",
    "lo": "ເຮືອອອກຈາກທ່າກ່ອນ",
    "km": "សំពៅចាកចេញពីកំពង់ផែ",
    "my": "သင်္ဘောသည်ဆိပ်ကမ်းမှထွက်သွားသည်",
    "bo": "གྲུ་ཁ་ནས་གྲུ་གཟིངས་ཐོན་སོང་།",
    "ru": "Паром вышел из гавани до тумана.",
    "hi": "कोहरा छँटने से पहले ही नाव बंदरगाह से निकल गई।",
    "und": "ნავი ნავსადგურიდან გავიდა",
}


@pytest.mark.parametrize(("code", "text"), TEXTS.items())
def test_a_script_is_recognised_and_its_words_are_found(code, text):
    assert language_of_script([text, "GPU 3"]) == code
    for metric in (["rouge"], ["squad"]):
        longer = f"{text[: len(text) // 2]} {text}"
        scores = load_metrics(metric, language=code)([text], [[longer]])
        assert min(scores.get("rouge1", 100), scores.get("f1", 100)) > 50


@pytest.mark.parametrize("text", ["The ferry 《西》", "Die Fähre", "1871, 3.5", "", "ＧＰＵ", "Hà Nội", "\ufffd"])
def test_texts_in_latin_letters_or_without_letters_have_no_language(text):
    assert language_of_script([text]) is None


@pytest.mark.parametrize(
    ("task", "code"), [("question_answering", "zh"), ("summarization", "th"), ("summarization", "ru")]
)
def test_rows_in_another_script_ask_for_their_language_before_a_model_loads(
    task, code, recipe_file, tmp_path, capsys, monkeypatch
):
    forbid_model_loading(monkeypatch)
    rows = [{"question": f"{number}?", "answers": {"text": [TEXTS[code]]}} for number in range(3)]
    for split in ("train", "validation", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    template = tmp_path / "mine.yaml"
    template.write_text("source: '{{ question }}'\ntarget: ' {{ answers.text[0] }}'\n")
    recipe = recipe_file(task=task, template=template, max_target_tokens=400, max_source_tokens=64)
    for command in (["check", str(recipe)], ["train", str(recipe)], ["evaluate", str(recipe)]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "3 of 3 rows have references in another script than English" in error
        assert f"Set it to their code, such as lang: {code}." in error
    assert main(["check", str(recipe), "--lang", code]) == 0
    assert main(["check", str(recipe), "--metrics", "exact_match"]) == 0  # It splits nothing.
    assert "another script" not in capsys.readouterr().err
    assert main(["check", str(recipe), "--lang", "en"]) == 0
    assert "3 of 3 rows have references in another script than English" in capsys.readouterr().err
    if code != "ru":  # Its words have spaces, so that every other language splits them too.
        assert main(["check", str(recipe), "--lang", "jp"]) == 2
        assert "another script than jp, and metrics split them by `lang`. Set it to" in capsys.readouterr().err
        assert main(["check", str(recipe), "--lang", "fr"]) == 0
        assert "3 of 3 rows have references in another script than fr" in capsys.readouterr().err


def test_a_score_without_a_language_reports_another_script_once(caplog):
    score = load_metrics(["rouge"])
    for _ in range(2):
        assert score([TEXTS["zh"]], [[TEXTS["zh"]]])["rouge1"] == 0
    assert caplog.text.count("references are in the script of language zh") == 1
    load_metrics(["rouge"], language="zh")([TEXTS["zh"]], [[TEXTS["zh"]]])
    load_metrics(["exact_match", "chrf"])([TEXTS["zh"]], [[TEXTS["zh"]]])
    assert caplog.text.count("script of language") == 1


ODD = [
    *"abc .,-'é½１ßİ中の한ก“…%", "\u200d", "\u200b", "\ufffd", "\u00ad", "\u0301", "ﬁ", "\u2028", "\x85", "\x1c", "🙂",
    "&lt;", "<skipped>", "\u3000", "\u202e", "नि", "-\n", "$5",
]  # fmt: skip


def odd_rows(seed):
    """Return rows of random texts with characters that tokenizers treat in different ways."""
    rng = random.Random(seed)

    def text():
        return "".join(rng.choices(ODD, k=rng.randrange(1, 30)))

    predictions, references = [], []
    for _ in range(150):
        references.append([text() for _ in range(rng.choice((1, 2)))])
        shuffled = "".join(rng.sample(references[-1][0], k=len(references[-1][0])))
        # A half character at the end of a prediction is not scored.
        predictions.append(shuffled.rstrip("\ufffd") if rng.random() < 0.5 else "")
    return predictions, references


@pytest.mark.parametrize(("language", "tokenize"), [(None, "13a"), ("fr", "13a"), ("zh", "zh"), ("th", "char")])
def test_corpus_metrics_equal_sacrebleu_on_odd_characters(language, tokenize):
    predictions, references = odd_rows(1)
    streams = [[texts[n] if n < len(texts) else None for texts in references] for n in range(2)]
    asian = language == "zh"
    expected = {
        "bleu": BLEU(tokenize=tokenize, force=True), "chrf": CHRF(word_order=2),
        "ter": TER(normalized=asian, asian_support=asian),
    }  # fmt: skip
    ours = load_metrics(["sacrebleu", "chrf", "ter"], language=language)(predictions, references)
    for name, metric in expected.items():
        assert ours[name] == metric.corpus_score(predictions, streams).score
        assert ours[f"{name}_signature"] == str(metric.get_signature())


def test_rouge_equals_rouge_score_on_odd_characters():
    predictions, references = odd_rows(2)
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    rows = [scorer.score_multi(texts, text) for text, texts in zip(predictions, references, strict=True)]
    ours = load_metrics(["rouge"], language="en")(predictions, references)
    for kind in kinds:
        assert ours[kind] == pytest.approx(100 * sum(row[kind].fmeasure for row in rows) / len(rows))
    assert "".join(split_sentences("A b.\u2028C d. E").split()) == "Ab.Cd.E"  # Splitting loses no letter.


def test_a_half_character_at_the_end_of_a_cut_prediction_changes_no_score():
    names = ["squad", "rouge", "sacrebleu", "chrf", "ter"]
    for language in ("zh", "th", "en"):
        score = load_metrics(names, language=language)
        assert score(["渡船离开\ufffd\ufffd"], [["渡船离开了"]]) == score(["渡船离开"], [["渡船离开了"]])
    assert load_metrics(["exact_match"])(["渡\ufffd船"], [["渡船"]])["exact_match"] == 0  # It is not at the end.
