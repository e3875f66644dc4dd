"""Each metric equals the implementation that it is named after, on our own sentences with noise."""

import json
import math
import os
import random
import re
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers.paths import ROOT
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER

from prompt_tuning.errors import RecipeError
from prompt_tuning.metrics.language import characters, primary_language
from prompt_tuning.metrics.loading import (
    LOWER_IS_BETTER,
    MAIN_METRIC,
    OWN_METRICS,
    TASK_METRICS,
    load_metrics,
)
from prompt_tuning.metrics.rouge.rouge import UnicodeTokenizer, split_sentences
from prompt_tuning.metrics.sacrebleu import sacrebleu as sacrebleu_module
from prompt_tuning.metrics.scores import Scores

ROWS = 60
ROUGE_TYPES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
SENTENCES = {
    "en": [
        "The ferry left the harbour before the fog had lifted.",
        "Our neighbour's bees, it turned out, preferred the lime trees.",
        "Three engineers repaired the old bridge in less than two weeks.",
        "Nobody had told the choir that the concert was cancelled!",
        "She keeps 1,250 stamps in a tin box under the stairs.",
        "Is the bakery on the corner still closed on Mondays?",
        "A cold wind from the north-east shook the orchard all night.",
        "They planted beans, leeks and a single row of sunflowers.",
    ],
    "de": [
        "Die Fähre verließ den Hafen, bevor sich der Nebel gelichtet hatte.",
        "Unsere Nachbarin züchtet Bienen und verkauft süßen Lindenhonig.",
        "Drei Ingenieure reparierten die alte Brücke in zwei Wochen.",
        "Warum ist die Bäckerei an der Ecke montags geschlossen?",
    ],
    "zh": [
        "渡船在大雾散去之前离开了港口。",
        "邻居家的蜜蜂更喜欢村口的椴树，这让大家很意外。",
        "三位工程师用了不到两周就修好了那座旧桥！",
        "街角的面包店星期一还是不开门吗？",
        "她把1250枚邮票放在楼梯下面的铁盒里。",
        "他们种了豆子、韭葱和一排向日葵。",
        "新的 GPU 服务器昨天晚上又坏了。",
    ],
    "ja": [
        "霧が晴れる前にフェリーは港を出ました。",
        "隣の家のミツバチは、村の入り口の木が好きです。",
        "三人の技師が二週間で古い橋を直しました。",
        "角のパン屋は月曜日も休みですか？",
        "彼女は切手を階段の下の箱にしまっています。",
    ],
    "hi": [
        "कोहरा छँटने से पहले ही नाव बंदरगाह से निकल गई।",
        "तीन इंजीनियरों ने दो हफ़्ते में पुराना पुल ठीक कर दिया।",
        "कोने की बेकरी सोमवार को भी बंद रहती है?",
    ],
}
ANSWERS = [
    "the grey heron",
    "A tin box",
    "1,250 stamps",
    "north-east",
    "An old, rusty bridge",
    "two weeks",
    "the lime",
]
CHINESE_ANSWERS = ["《渡船》与港口", "楼梯下面的铁盒", "1250枚", "三位工程师", "GPU 服务器", "一排“向日葵”。"]


def noisy(text, rng, separator):
    """Copy a text, some of its words (characters, if no separator) dropped, doubled, swapped or inflected."""
    tokens = []
    for token in text.split(separator) if separator else text:
        edit = rng.random()
        if edit < 0.08:
            continue
        tokens += [token, token] if edit < 0.14 else [token.upper() if edit < 0.18 else token]
        if separator and edit > 0.92:
            tokens[-1] += "s"
    if len(tokens) > 2 and rng.random() < 0.5:
        place = rng.randrange(len(tokens) - 1)
        tokens[place], tokens[place + 1] = tokens[place + 1], tokens[place]
    return separator.join(tokens).strip()


def make_rows(texts, separator, counts=(1,), seed=0):
    """Make predictions and references; a row has a number of references out of `counts`, noisy except the first."""
    rng = random.Random(seed)
    predictions, references = [], []
    for row in range(ROWS):
        text = texts[row % len(texts)]
        predictions.append(noisy(text, rng, separator))
        references.append([text, *(noisy(text, rng, separator) for _ in range(rng.choice(counts) - 1))])
    return predictions, references


def separator_of(language):
    return "" if language in ("zh", "ja") else " "


def sacrebleu_cli(folder, predictions, references, *options):
    """Score with `python -m sacrebleu` and return its scores by our names."""
    (folder / "predictions").write_text("\n".join(predictions), encoding="utf-8")
    streams = [folder / f"references{stream}" for stream in range(len(references[0]))]
    for stream, texts in zip(streams, zip(*references, strict=True), strict=True):
        stream.write_text("\n".join(texts), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", *map(str, streams), "-i", str(folder / "predictions")]
    command += ["-m", "bleu", "chrf", "ter", "--chrf-word-order", "2", "-w", "10", *options]
    reports = json.loads(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)
    scores = {key: report["score"] for key, report in zip(("bleu", "chrf", "ter"), reports, strict=True)}
    signatures = zip(("bleu_signature", "chrf_signature", "ter_signature"), reports, strict=True)
    return scores | {key: report["signature"] for key, report in signatures}


@pytest.mark.parametrize(("language", "count"), [("en", 1), ("de", 2), ("zh", 1), ("zh", 2), ("ja", 1)])
def test_translation_metrics_equal_sacrebleu_on_the_command_line(language, count, tmp_path):
    predictions, references = make_rows(SENTENCES[language], separator_of(language), counts=(count,))
    names = ["chrf", "ter"]
    options = []
    if language != "ja":  # Its BLEU needs MeCab.
        names.append("sacrebleu")
        options += ["--tokenize", sacrebleu_module.tokenizer_for(language)]
    if language in ("zh", "ja"):
        options += ["--ter-normalized", "--ter-asian-support"]
    ours = load_metrics(names, language=language)(predictions, references)
    expected = sacrebleu_cli(tmp_path, predictions, references, *options)
    assert 20 < ours["chrf"] < 95
    assert ours == pytest.approx({key: expected[key] for key in ours}, abs=1e-9)


def test_rows_with_different_numbers_of_references_score_as_in_sacrebleu():
    predictions, references = make_rows(SENTENCES["en"], " ", counts=(1, 2, 3))
    streams = [[texts[n] if n < len(texts) else None for texts in references] for n in range(3)]
    score = load_metrics(["sacrebleu", "chrf", "ter"])
    ours = score(predictions, references)
    for key, metric in {"bleu": BLEU(), "chrf": CHRF(word_order=2), "ter": TER()}.items():
        assert ours[key] == metric.corpus_score(predictions, streams).score
        assert ours[f"{key}_signature"] == str(metric.get_signature())
        assert "nrefs:var" in ours[f"{key}_signature"]

    # A repeated reference changes neither BLEU nor chrF, so missing ones did not count as empty texts.
    repeated = score(predictions, [(texts * 3)[:3] for texts in references])
    assert (repeated["bleu"], repeated["chrf"]) == (ours["bleu"], ours["chrf"])


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        (None, "13a"),
        ("pt-br", "13a"),
        ("zho_Hant", "zh"),
        ("jpn_Jpan", "ja-mecab"),
        ("ko-KR", "ko-mecab"),
        ("tha_Thai", "char"),
        ("bod_Tibt", "char"),
    ],
)
def test_sacrebleu_takes_the_tokenizer_of_the_language_and_no_other(language, tokenizer, monkeypatch):
    monkeypatch.setattr(sacrebleu_module, "find_spec", lambda module: module)
    assert sacrebleu_module.tokenizer_for(language) == tokenizer
    monkeypatch.setattr(sacrebleu_module, "find_spec", lambda module: None)
    if "mecab" not in tokenizer:
        assert sacrebleu_module.tokenizer_for(language) == tokenizer
        return
    with pytest.raises(RecipeError, match=rf"{tokenizer}, is not installed. Run `pip install 'sacrebleu\[..\]'`, or"):
        load_metrics(["chrf", "sacrebleu"], language=language)(["a"], [["a"]])


@pytest.mark.parametrize(
    ("codes", "language"),
    [
        (["zh", "zh-CN", "zh_TW", "cmn", "zho_Hans"], "zh"),
        (["ja_XX", "jpn_Jpan"], "ja"),
        (["kor_Hang"], "ko"),
        (["bur", "mya_Mymr"], "my"),
        (["EN-us", "eng"], "en"),
        (["fr_CA"], "fr"),
        (["", None], None),
    ],
)
def test_codes_of_a_language_have_one_primary_language(codes, language):
    assert {primary_language(code) for code in codes} == {language}


def rouge_directly(predictions, references, **options):
    scorer = RougeScorer(ROUGE_TYPES, **options)
    rows = [scorer.score_multi(texts, text) for text, texts in zip(predictions, references, strict=True)]
    return {kind: 100 * sum(row[kind].fmeasure for row in rows) / len(rows) for kind in ROUGE_TYPES}


@pytest.mark.parametrize("language", [None, "eng_Latn"])
def test_rouge_of_english_equals_rouge_score(language):
    paragraphs = ["\n".join(SENTENCES["en"][start : start + 3]) for start in range(6)]
    predictions, references = make_rows(paragraphs, " ", counts=(1, 2))
    score = load_metrics(["rouge"], language=language)
    stemmed = rouge_directly(predictions, references, use_stemmer=True)
    assert score(predictions, references) == pytest.approx(stemmed)
    assert stemmed != pytest.approx(rouge_directly(predictions, references))

    # The metric splits a line into its sentences again, but rouge_score takes it for one sentence.
    one_line = [text.replace("\n", " ") for text in predictions]
    references = [[text.replace("\n", " ") for text in texts] for texts in references]
    assert score(one_line, references) == pytest.approx(stemmed)
    assert rouge_directly(one_line, references, use_stemmer=True)["rougeLsum"] < stemmed["rougeLsum"] - 0.1


@pytest.mark.parametrize("language", ["zh", "ja", "hi", "de"])
def test_rouge_of_other_languages_equals_rouge_score_on_spelled_out_tokens(language):
    """Give rouge_score's own tokenizer each token as ASCII letters and digits: the numbers of its code points."""

    def spell_out(line):
        line = re.sub(r"[.,!?、，。？！।]", " ", line.lower())
        tokens = characters(line) if language in ("zh", "ja") else line.split()
        return " ".join("x".join(f"{ord(character):x}" for character in token) for token in tokens)

    first = make_rows(SENTENCES[language], separator_of(language), counts=(2,))
    second = make_rows(SENTENCES[language][::-1], separator_of(language), counts=(2,), seed=1)
    pairs = list(zip(first[0], second[0], strict=True))
    pairs_of_references = [list(zip(*texts, strict=True)) for texts in zip(first[1], second[1], strict=True)]
    ours = load_metrics(["rouge"], language=language)(
        ["\n".join(pair) for pair in pairs], [["\n".join(pair) for pair in texts] for texts in pairs_of_references]
    )
    directly = rouge_directly(
        ["\n".join(map(spell_out, pair)) for pair in pairs],
        [["\n".join(map(spell_out, pair)) for pair in texts] for texts in pairs_of_references],
    )
    assert 50 < ours["rouge1"] < 100
    assert ours == pytest.approx(directly)


def test_rouge_finds_chinese_words():
    text = "渡船离开了港口。"
    assert set(load_metrics(["rouge"], language="zh")([text], [[text]]).values()) == {100.0}


def test_squad_finds_a_chinese_word_in_a_longer_answer():
    assert load_metrics(["squad"], language="zh")(["渡船"], [["渡船离开"]])["f1"] > 0


def test_rouge_splits_words_of_any_script():
    assert UnicodeTokenizer("hi").tokenize("हिन्दी, भाषा।") == ["हिन्दी", "भाषा"]
    assert UnicodeTokenizer("fr").tokenize("L'Été à Nîmes_2024 !") == ["l", "été", "à", "nîmes", "2024"]
    assert UnicodeTokenizer("ko").tokenize("배가 항구를 떠났다.") == ["배가", "항구를", "떠났다"]
    assert UnicodeTokenizer("th").tokenize("น้ำ GPU") == ["น", "้", "ำ", "gpu"]
    assert UnicodeTokenizer("fa").tokenize("می\u200cروم") == ["میروم"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It rose by 3.5 metres. Why? Nobody knew!", ["It rose by 3.5 metres.", "Why?", "Nobody knew!"]),
        ('"Stop!" he said. (Nobody did.) He left.', ['"Stop!" he said.', "(Nobody did.)", "He left."]),
        ("船走了。「真的吗？」他问。", ["船走了。", "「真的吗？」", "他问。"]),
        ("नाव गई। पुल बंद है।", ["नाव गई।", "पुल बंद है।"]),
        ("One. Two.\nThree.", ["One. Two.", "Three."]),
    ],
)
def test_rouge_lsum_splits_sentences_of_any_script(text, sentences):
    assert split_sentences(text).split("\n") == sentences
    score = load_metrics(["rouge"], language="zh")
    assert score([text[:-3]], [[text]]) == score(["\n".join(sentences)[:-3]], [["\n".join(sentences)]])


def squad_script(predictions, references):
    """Score as the official evaluate-v2.0.py does; for rows that all have an answer it equals v1.1."""

    def normalise(text):
        kept = text.lower().translate(dict.fromkeys(map(ord, string.punctuation)))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())

    def f1(gold, prediction):
        gold, prediction = normalise(gold).split(), normalise(prediction).split()
        if not gold or not prediction:
            return int(gold == prediction)
        same = sum((Counter(gold) & Counter(prediction)).values())
        if not same:
            return 0
        precision, recall = same / len(prediction), same / len(gold)
        return 2 * precision * recall / (precision + recall)

    def percentages(rows):
        scored = []
        for prediction, texts in rows:
            golds = [text for text in texts if normalise(text)] or [""]
            scored.append(
                (
                    max(normalise(gold) == normalise(prediction) for gold in golds),
                    max(f1(gold, prediction) for gold in golds),
                )
            )
        return [100 * sum(column) / len(scored) for column in zip(*scored, strict=True)]

    rows = list(zip(predictions, references, strict=True))
    groups = {"": rows}
    if not all(references):
        groups |= {"has_answer_": [row for row in rows if row[1]], "no_answer_": [row for row in rows if not row[1]]}
    scores = {}
    for prefix, group in groups.items():
        scores[f"{prefix}exact_match"], scores[f"{prefix}f1"] = percentages(group)
    return scores


@pytest.mark.parametrize("counts", [(1,), (1, 2, 3)])
def test_squad_equals_the_script_of_v1(counts):
    predictions, references = make_rows(ANSWERS, " ", counts)
    references = [[f"{texts[0].capitalize()}.", *texts[1:]] for texts in references]
    ours = load_metrics(["squad"])(predictions, references)
    assert 20 < ours["exact_match"] < ours["f1"] < 100
    assert ours == pytest.approx(squad_script(predictions, references))


def test_squad_equals_the_script_of_v2():
    predictions, references = make_rows(ANSWERS, " ", (1, 2))
    references = [[] if row % 3 == 0 else texts for row, texts in enumerate(references)]
    predictions = ["" if row % 4 == 0 else text for row, text in enumerate(predictions)]
    script = squad_script(predictions, references)
    score = load_metrics(["squad"])
    assert score(predictions, references) == pytest.approx(script)
    assert 0 < script["no_answer_f1"] < 100

    # "Unanswerable" counts as the empty answer, and an empty reference as none.
    spoken = ["Unanswerable." if text == "" else text for text in predictions]
    assert score(spoken, [texts or [""] for texts in references]) == pytest.approx(script)


def test_squad_reads_no_answer_as_a_word_for_a_question_with_an_answer():
    score = load_metrics(["squad"])
    assert score(["unanswerable"], [["an unanswerable riddle"]]) == {"exact_match": 0.0, "f1": pytest.approx(200 / 3)}
    assert score(["unanswerable"], [[]]) == dict.fromkeys(
        ("exact_match", "f1", "no_answer_exact_match", "no_answer_f1"), 100.0
    )


def test_squad_of_chinese_equals_f1_by_character():
    predictions, references = make_rows(CHINESE_ANSWERS, "", (1, 2))

    def split(text):
        return re.findall(r"[a-z0-9]+|[^a-z0-9\s]", re.sub(r"[《》“”。]", "", text.lower()))

    def f1(prediction, gold):
        same = sum(min(prediction.count(token), gold.count(token)) for token in set(gold))
        return 2 * same / (len(prediction) + len(gold))

    exact, overlap = [], []
    for prediction, texts in zip(predictions, references, strict=True):
        exact.append(any(split(prediction) == split(text) for text in texts))
        overlap.append(max(f1(split(prediction), split(text)) for text in texts))
    expected = {"exact_match": 100 * sum(exact) / ROWS, "f1": 100 * sum(overlap) / ROWS}
    assert load_metrics(["squad"], language="zh-CN")(predictions, references) == pytest.approx(expected)
    assert 20 < expected["exact_match"] < expected["f1"] < 100


@pytest.mark.parametrize(
    ("prediction", "gold", "exact_match", "f1"),
    [
        ("《西游记》", "西游记", 100, 100),
        ("吴承恩写的", "吴承恩", 0, 75),
        ("在1987年", "1987年", 0, 80),
        ("GPU服务器", "GPU 服务器", 100, 100),
        ("歌手碧昂丝（Beyoncé）", "碧昂丝（Beyoncé）", 0, 80),
        ("Anna-Lena Müller 女士", "Müller", 0, 40),
        ("２０１９年", "２０１９年春天", 0, 200 / 3),
        ("约 3,500 米", "3500米", 0, 80),
        ("", "长江", 0, 0),
    ],
)
def test_squad_of_chinese_rows_equals_mlqas_script(prediction, gold, exact_match, f1):
    scores = load_metrics(["squad"], language="zh")([prediction], [[gold]])
    assert scores == {"exact_match": exact_match, "f1": pytest.approx(f1)}


def test_squad_normalises_by_language():
    assert load_metrics(["squad"])(["The Ferry!"], [["ferry"]])["exact_match"] == 100.0
    assert load_metrics(["squad"], language="fr")(["« a ferry »"], [["A ferry."]])["exact_match"] == 100.0
    assert load_metrics(["squad"], language="fr")(["a ferry"], [["ferry"]])["exact_match"] == 0.0
    assert load_metrics(["squad"], language="ja")(["３～４ 人"], [["３４人"]])["exact_match"] == 100.0


def test_exact_match_is_literal():
    score = load_metrics(["exact_match"])
    predictions, references = make_rows(ANSWERS, " ", (1, 2, 3))
    hits = sum(text in texts for text, texts in zip(predictions, references, strict=True))
    assert score(predictions, references) == {"exact_match": 100 * hits / ROWS}
    assert score([" ferry\n", "Ferry"], [["x", "ferry"], ["ferry"]]) == {"exact_match": 50.0}


def test_main_metrics_are_keys_of_their_tasks():
    for task, names in TASK_METRICS.items():
        assert 0 < load_metrics(names)(["a ferry leaves now"], [["a ferry leaves now"]])[MAIN_METRIC[task]] <= 100.001


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], []), (["a", "b"], [["a"]])])
def test_no_rows_and_unequal_numbers_of_rows_are_refused(predictions, references):
    with pytest.raises(ValueError, match=f"{len(predictions)} predictions and {len(references)} rows"):
        load_metrics(["squad"])(predictions, references)


def test_rows_of_a_wrong_type_are_refused_and_the_metric_stays_usable():
    score = load_metrics(["rouge"])
    with pytest.raises(ValueError, match="row 1 has no reference"):
        score(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="row 0: the references are the string 'abc'"):
        score(["a"], ["abc"])
    with pytest.raises(ValueError, match=r"row 0: 1 with the references .* expected strings"):
        score([1], [["a"]])
    with pytest.raises(ValueError, match="expected strings"):
        score(["a"], [[None]])
    assert score(["a"], [["a"]])["rouge1"] == 100.0


@pytest.mark.parametrize(
    ("name", "nearest"), [("rogue", "rouge"), ("BLEU", "sacrebleu"), ("exact-match", "exact_match")]
)
def test_an_unknown_metric_is_refused_with_the_nearest_name(name, nearest):
    with pytest.raises(RecipeError, match=f"unknown metric '{name}'. Did you mean {nearest}\\?"):
        load_metrics(["squad", name])


def test_an_unknown_hub_id_is_refused(monkeypatch):
    def load(location, **options):
        raise FileNotFoundError(f"no module at {location}")

    monkeypatch.setattr("evaluate.load", load)
    with pytest.raises(RecipeError, match="cannot load the metric 'someone/length': no module at someone/length"):
        load_metrics(["someone/length"], trust_remote_code=True)


@pytest.mark.parametrize("text", ["import no_such_package", "def f(:", "x = 1"])
def test_a_module_that_does_not_load_is_named(text, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(RecipeError, match=r"metric '.*mine.py' does not load: "):
        load_metrics([str(tmp_path / "mine.py")], trust_remote_code=True)


def test_two_metrics_that_give_different_values_for_one_key_are_refused():
    score = load_metrics(["squad", "exact_match", "squad"])
    assert score(["ferry"], [["ferry"]]) == {"exact_match": 100.0, "f1": 100.0}
    with pytest.raises(RecipeError, match=r"'squad' and 'exact_match' both give 'exact_match'.*100.0 and 0.0"):
        score(["Ferry"], [["ferry"]])


USER_METRIC = """
import datasets
import evaluate


class Length(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        references = datasets.Sequence(text) if {nested} else text
        features = datasets.Features({{"predictions": text, "references": references}})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {result}
"""


@pytest.mark.parametrize(
    ("nested", "result", "expected"),
    [
        (False, '{"characters": sum(map(len, references)), "by_row": []}', {"characters": 5.0}),
        (True, '{"texts": sum(map(len, references)), "unit": "text"}', {"texts": 3.0, "unit": "text"}),
    ],
)
def test_a_metric_on_disk_is_loaded_and_scored(nested, result, expected, tmp_path):
    script = tmp_path / "length" / "length.py"
    script.parent.mkdir()
    script.write_text(USER_METRIC.format(nested=nested, result=result))
    for path in (script, script.parent):
        score = load_metrics([str(path), "exact_match"], language="zh", trust_remote_code=True)
        assert score(["abc", "d"], [["abc", "c"], ["dd"]]) == expected | {"exact_match": 50.0}


def test_a_metric_on_disk_that_returns_no_score_is_refused(tmp_path):
    script = tmp_path / "length.py"
    script.write_text(USER_METRIC.format(nested=True, result='{"by_row": [1.0]}'))
    with pytest.raises(RecipeError, match="gives no number, but by_row"):
        load_metrics([str(script)], trust_remote_code=True)(["a"], [["a"]])


@pytest.mark.parametrize("name", OWN_METRICS)
def test_every_metric_is_documented_and_best_for_equal_texts(name):
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    assert re.search(rf"(?m)^\| .*`{name}`.* \|", pages)
    texts = ["the red ferry leaves the old harbour now"]
    scores = Scores.from_json(load_metrics([name], language="en")(texts, [texts])).values
    for key, score in scores.items():
        assert score == pytest.approx(0 if key in LOWER_IS_BETTER else 100), key


SCORE_OFFLINE = """
import json, logging, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit(f"asked the network: {event} {arguments}")

sys.addaudithook(refuse)
import prompt_tuning.metrics
assert not {"torch", "evaluate", "datasets", "transformers"} & set(sys.modules)
sys.modules["transformers"] = None  # Without this, evaluate imports transformers and torch, which takes seconds.
import evaluate
del sys.modules["transformers"]
names = ["chrf", "rouge", "sacrebleu", "squad", "ter"]
print(json.dumps(prompt_tuning.metrics.load_metrics(names)(["a ferry"], [["the ferry", "a boat"]])))
assert not logging.root.handlers, "messages would be printed twice"
"""


def test_two_processes_at_once_with_an_empty_cache_are_quiet_and_offline(tmp_path):
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-W", "error", "-c", SCORE_OFFLINE]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    first, second = (process.communicate() for process in processes)
    assert first == second
    assert first[1] == ""
    assert json.loads(first[0])["rouge1"] == 50.0


def test_a_score_that_is_not_finite_is_kept(tmp_path):
    script = tmp_path / "length.py"
    script.write_text(USER_METRIC.format(nested=True, result='{"corr": float("nan")}'))
    assert math.isnan(load_metrics([str(script)], trust_remote_code=True)(["a"], [["a"]])["corr"])


def test_scores_keep_the_flat_form_of_results_json():
    flat = load_metrics(["sacrebleu", "exact_match"])(["the red cat sat"], [["the red cat sat"]])
    scores = Scores.from_json(flat)
    assert set(scores.values) == {"bleu", "exact_match"} and set(scores.signatures) == {"bleu_signature"}
    assert scores.to_json() == flat
    assert Scores({"f1": 66.6666}, {}).rounded() == Scores({"f1": 66.67}, {})
