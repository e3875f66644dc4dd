"""Token ids within a budget: only the columns that may be cut are cut, and every cut is counted."""

import copy
import os
import random
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from helpers.paths import ROOT
from helpers.rows import question_rows, write_jsonl
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer

from prompt_tuning.data.loading import SPLITS
from prompt_tuning.encoding.batching import batches_within, common_prefix, pad_left, source_length
from prompt_tuning.encoding.dataset import encode
from prompt_tuning.encoding.decoding import decode
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.engine.stop_texts import StopTexts
from prompt_tuning.errors import OverlongError, TemplateError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.templates.template import Template

PLAIN = Template.load("question_answering/plain")
ROW = question_rows(1)[0]


def test_a_causal_row_is_source_target_end_with_loss_on_target_and_end(tokenizer):
    encoded = Encoder(PLAIN, tokenizer).row(ROW)
    source = tokenizer(encoded["source"]).input_ids
    assert encoded["input_ids"][: len(source)] == source
    assert encoded["labels"][: len(source)] == [-100] * len(source)
    targets = encoded["labels"][len(source) :]
    assert targets == encoded["input_ids"][len(source) :]
    assert tokenizer.decode(targets) == " Turin<eos>"
    assert encoded["references"] == ["Turin"] and encoded["cut_tokens"] == 0


def test_an_encoder_decoder_row_has_the_target_as_labels(tokenizer):
    encoded = Encoder(PLAIN, tokenizer, is_encoder_decoder=True).row(ROW)
    assert tokenizer.decode(encoded["input_ids"]) == encoded["source"]
    assert tokenizer.decode(encoded["labels"]) == "Turin<eos>"


def test_only_the_column_in_truncate_is_cut_from_its_end(tokenizer):
    whole = Encoder(PLAIN, tokenizer).row(ROW)
    length = len(tokenizer(whole["source"]).input_ids)
    for budget in range(length - 1, length - 25, -5):
        cut = Encoder(PLAIN, tokenizer, max_source_tokens=budget).row(ROW)
        context, question = cut["source"].split("\nQuestion: ")
        assert ROW["context"].startswith(context) and question == "Where does Ada live?\nAnswer:"
        assert len(tokenizer(cut["source"]).input_ids) <= budget
        assert cut["cut_tokens"] == length - len(tokenizer(cut["source"]).input_ids) > 0
        assert cut["labels"][-2:] == whole["labels"][-2:]


def test_a_document_of_sentences_is_cut_like_one_text(tokenizer):
    template = Template.load("summarization/plain")
    sentences = ["Ada lives in Turin.", "The garden is full of old trees and young birds."]
    whole = {"document": " ".join(sentences), "summary": "Ada"}
    encoder = Encoder(template, tokenizer, max_source_tokens=12)
    cut = encoder.row({"document": sentences, "summary": ["Ada"]})
    assert cut == encoder.row(whole) and cut["cut_tokens"] > 0


def test_columns_are_cut_in_the_order_of_truncate(tokenizer):
    template = Template(source="{{ a }} | {{ b }} |", target="x")
    row = {"a": "Ada lives in Turin " * 5, "b": "Emil lives in Riga " * 5}
    length = len(tokenizer(template.render(row).source).input_ids)
    text = Encoder(template, tokenizer, max_source_tokens=length - 3, truncate=("b", "a")).source(row).text
    assert text.startswith(row["a"]) and row["b"] not in text
    text = Encoder(template, tokenizer, max_source_tokens=8, truncate=("b", "a")).source(row).text
    assert text.endswith("|  |") and text.startswith("Ada")


def test_a_row_that_does_not_fit_is_an_error(tokenizer):
    with pytest.raises(OverlongError, match="nothing left to cut, max_source_tokens is 5; raise it"):
        Encoder(PLAIN, tokenizer, max_source_tokens=5).row(ROW)
    with pytest.raises(TemplateError, match="column 'answers' is not text"):
        Encoder(PLAIN, tokenizer, max_source_tokens=20, truncate=("answers",)).row(ROW)


def test_an_empty_source_is_an_error_of_the_row(tokenizer):
    encoder = Encoder(Template("{{ text }}", "{{ label }}"), tokenizer)
    assert encoder.row({"text": "Ada", "label": "yes"})["input_ids"]
    with pytest.raises(TemplateError, match="the source is empty, so that a model has nothing to continue"):
        encoder.row({"text": "", "label": "yes"})


def test_the_longest_of_the_choices_that_do_not_fit_is_named(tokenizer):
    choices = " ||| ".join(["no", "it is a long story", "it is a long story of old trees and young birds"])
    encoder = Encoder(Template("{{ text }}", "no", answer_choices=choices), tokenizer, max_target_tokens=3)
    with pytest.raises(OverlongError, match="the choice 'it is a long story of old trees and young birds' has"):
        encoder.row({"text": "Ada"})


def test_cuts_drops_and_bad_rows_are_all_counted(tokenizer):
    rows = question_rows(4)
    rows[1]["answers"] = {"text": ["a very long answer that goes on and on " * 3], "answer_start": [0]}
    rows[2]["question"] = None
    encoder = Encoder(PLAIN, tokenizer, max_source_tokens=28, max_target_tokens=10)
    encoded, report = encode(Dataset.from_list(rows), encoder, training=True, drop_overlong=True)
    assert (report.rows, report.dropped_rows, report.cut_rows) == (2, 1, 2) and report.cut_tokens == sum(
        encoded["cut_tokens"]
    )
    assert encoded["row"] == [0, 3]
    assert [row for row, _ in report.problems] == [2] and "null" in report.problems[0][1]
    assert "2 rows, 2 cut by" in str(report) and "1 left out" in str(report)
    _, strict = encode(Dataset.from_list(rows), encoder, training=True)
    assert [row for row, _ in strict.problems] == [1, 2] and "max_target_tokens is 10" in strict.problems[0][1]
    _, evaluated = encode(Dataset.from_list(rows), encoder)
    assert [row for row, _ in evaluated.problems] == [2]  # A long reference is not a problem.


def test_rows_may_start_with_as_many_bad_ones_as_datasets_reads_first(tokenizer):
    long = ROW | {"question": ROW["question"] * 40}
    rows = Dataset.from_list([long] * 1001 + question_rows(3))
    encoded, report = encode(rows, Encoder(PLAIN, tokenizer, max_source_tokens=96), training=True, drop_overlong=True)
    assert encoded["row"] == [1001, 1002, 1003] and report.dropped_rows == 1001


def test_a_chat_template_wraps_the_source_and_writes_the_special_tokens(tokenizer):
    encoded = Encoder(Template.load("question_answering/chat"), tokenizer).row(ROW)
    assert encoded["source"].startswith("<|system|>You answer") and encoded["source"].endswith("<|assistant|>")
    target = [label for label in encoded["labels"] if label != -100]
    assert tokenizer.decode(target) == "Turin<eos>"


def test_a_chat_template_with_todays_date_writes_the_same_row_tomorrow(tokenizer, caplog):
    dated = copy.deepcopy(tokenizer)
    dated.chat_template = "{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}" + tokenizer.chat_template
    encoder = Encoder(Template.load("question_answering/chat"), dated)
    assert encoder.row(ROW)["source"].startswith("26 Jul 2024 00:00:00.000000<|system|>")
    dated.chat_template = "{{ strftime_now(format='%Y', ) }}" + tokenizer.chat_template
    assert encoder.row(ROW)["source"].startswith("2024<|system|>") and "writes today's date" not in caplog.text
    dated.chat_template = "{% set day = '%Y' %}{{ strftime_now(day) }}" + tokenizer.chat_template
    assert encoder.row(ROW) and "the chat template writes today's date in a way that cannot be fixed" in caplog.text


def test_a_missing_chat_template_is_an_error(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(TemplateError, match="wants a chat template and this tokenizer has none"):
        Encoder(Template.load("question_answering/chat"), bare).row(ROW)


def test_a_text_ends_at_a_stop_text_but_not_at_one_it_starts_with(tokenizer):
    texts = ["Ada Ada Ada\nAda Ada Ada", "\n\nTurin\nAda Ada Ada Ada", "\n Turin Ada Ada Ada Ada"]
    ids = [tokenizer(text).input_ids for text in texts]
    width = min(map(len, ids))
    rows = torch.tensor([row[:width] for row in ids])
    prompt = torch.zeros(3, 4, dtype=torch.long)
    criterion = StopTexts(tokenizer, ("\n",))
    ended = [criterion(torch.cat([prompt, rows[:, :step]], 1), None).tolist() for step in range(1, width + 1)]
    for number, row in enumerate(rows):
        expected = ["\n" in tokenizer.decode(row[:step]).lstrip() for step in range(1, width + 1)]
        assert [step[number] for step in ended] == expected
    assert ended[0] == [False, False, False] and ended[-1][1] is True


def test_decoded_text_has_no_padding_and_ends_at_a_stop_text(tokenizer):
    ids = tokenizer("Turin\nand more").input_ids
    assert decode([[*ids, 1, 0, -100]], tokenizer) == ["Turin\nand more"]
    assert decode([ids, []], tokenizer, stop=("more", "\n")) == ["Turin", ""]
    assert decode([tokenizer("\n\n Turin\nand more").input_ids], tokenizer, stop=("\n",)) == ["Turin"]
    batch = pad_left([[5, 6, 7], [8]], 0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_the_common_prefix_of_all_sources_is_reported(tokenizer):
    template = Template("Answer the question. {{ question }}", "{{ answers.text[0] }}")
    rows, report = encode(Dataset.from_list(question_rows(9)), Encoder(template, tokenizer))
    opening = common_prefix(rows)
    assert tokenizer.decode(opening) == "Answer the question. Where does"
    assert report.common_prefix_length == len(opening)
    assert str(report).endswith(f"all start with the same {len(opening)}")
    # The last source token and the target are never part of it, so that a row of only the prefix shortens it.
    alone = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}] * 2)
    assert common_prefix(alone) == [5]
    assert common_prefix(alone, is_encoder_decoder=True) == [5, 6, 7]
    assert (
        common_prefix(Dataset.from_list([{"input_ids": [5], "labels": [5]}, {"input_ids": [6], "labels": [6]}])) == []
    )


def test_batches_hold_their_budget_and_every_row_once():
    assert batches_within([9, 9, 4, 3, 3, 3, 1], max_rows=3, max_tokens=18) == [[0, 1], [2, 3, 4], [5, 6]]
    assert batches_within([50, 2, 2], max_rows=8, max_tokens=10) == [[0], [1, 2]]
    assert batches_within([2, 2, 50, 2], max_rows=8, max_tokens=10) == [[0, 1], [2], [3]]
    assert batches_within([], max_rows=3, max_tokens=18) == []


def test_the_common_prefix_is_that_of_a_loop_over_rows():
    draw = random.Random(0)
    for opened in (0, 1, 5, 9):
        rows = []
        for _ in range(2500):
            source = [*range(opened), *draw.choices((1, 2), k=draw.randint(1, 4))]
            target = draw.choices((3, 4), k=draw.randint(0, 3))
            rows.append({"input_ids": source + target, "labels": [-100] * len(source) + target})
        dataset = Dataset.from_list(rows).select(range(2499, -1, -1))
        causal = [row["input_ids"][: source_length(row["labels"])][:-1] for row in rows]
        for ids, is_encoder_decoder in ((causal, False), ([row["input_ids"] for row in rows], True)):
            expected = os.path.commonprefix(ids)  # noqa: RUF071  They are lists.
            assert (
                common_prefix(dataset, is_encoder_decoder=is_encoder_decoder) == expected and len(expected) >= opened
            )


def test_a_second_run_in_another_process_reads_the_encoded_rows_from_the_cache(recipe_file, tmp_path, monkeypatch):
    pairs = [{"fr": f"Bonjour {number}.", "en": f"Day {number}"} for number in range(12)]
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}_fr.jsonl", pairs)
    files = {f"{split}_file": tmp_path / f"{split}_fr.jsonl" for split in ("train", "validation", "test")}
    texts = dict(task="translation", template="translation/few_shot", source_lang="fr", target_lang="en")
    recipes = [
        recipe_file(template="question_answering/chat").rename(tmp_path / "chat.yaml"),
        recipe_file(preprocessing_num_workers=2, max_train_samples=20).rename(tmp_path / "workers.yaml"),
        recipe_file(**texts, **files, max_source_tokens=256).rename(tmp_path / "translation.yaml"),
        recipe_file(num_demonstrations=1, max_source_tokens=128).rename(tmp_path / "demonstrations.yaml"),
    ]
    command = [sys.executable, "-m", "prompt_tuning", "check", *map(str, recipes)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def encoded_again(*args):
        raise AssertionError("a row was encoded again")

    monkeypatch.setattr(Encoder, "row", encoded_again)
    for path in recipes:
        prepare(load_recipe(path), SPLITS)
    changed = load_recipe(recipes[0], ["--max_source_tokens", "95"])
    with pytest.raises(AssertionError, match="encoded again"):
        prepare(changed, SPLITS)


def test_the_end_that_a_tokenizer_appends_is_only_after_the_target(tokenizer):
    appending = copy.deepcopy(tokenizer)
    appending._tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    row = question_rows(1)[0]
    template = Template.load("question_answering/plain")
    assert Encoder(template, appending).row(row) == Encoder(template, tokenizer).row(row)


def test_a_slow_tokenizer_also_cuts():
    template = Template("{{ document }}\nSummary:", "{{ summary }}", truncate=("document",))
    encoder = Encoder(template, ByT5Tokenizer(), True, max_source_tokens=40)
    row = encoder.row({"document": "a long text " * 20, "summary": "x"})
    assert len(row["input_ids"]) == 40 and row["cut_tokens"] > 100 and row["source"].endswith("\nSummary:")
