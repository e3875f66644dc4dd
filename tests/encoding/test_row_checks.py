"""What a row loses on its way to the model and back is counted, named with its cause, and refused if all rows do."""

import copy
import re

import pytest
import torch
from datasets import Dataset
from helpers.models import forbid_model_loading
from helpers.rows import question_rows, write_jsonl
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prompt_tuning.cli.main import main
from prompt_tuning.encoding.dataset import encode
from prompt_tuning.encoding.decoding import check_stop, decode, decode_to_limit
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.engine.stop_texts import StopTexts, text_settings
from prompt_tuning.errors import TemplateError
from prompt_tuning.templates.template import Template


def normalising(tokenizer, normalizer):
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.normalizer = normalizer
    return changed


def word_tokenizer(**settings):
    """Return a tokenizer of a few words, which writes a space before each mark."""
    words = ["<pad>", "<eos>", "<unk>", "Ada", "lives", "in", "Turin", ".", ","]
    backend = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    special = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special, **settings)


def unreachable(tokenizer, target, template=None):
    template = template or Template("{{ text }}", "{{ target }}", stop=("\n",))
    causes = {
        Encoder(template, tokenizer, is_encoder_decoder=flag).row({"text": "Ada", "target": target})["unreachable"]
        for flag in (False, True)
    }
    assert len(causes) == 1
    return causes.pop()


@pytest.mark.parametrize(
    "target", ("Turin", "  Turin \n", "Ada  lives", "½ １２ é", "<|user|> Ada<eos>", "\ufffd", "a.")
)
def test_a_target_that_decoding_gives_back_is_no_loss(tokenizer, target):
    assert unreachable(tokenizer, target) == ""


def test_the_cause_of_a_target_that_decoding_cannot_give_back_is_named(tokenizer):
    nfkc = normalising(tokenizer, normalizers.NFKC())
    assert unreachable(nfkc, "Ada 1") == ""
    assert unreachable(nfkc, "in １２ ½") == (
        "the tokenizer changes '１２ ½' to '12 1⁄2'; write the target as the tokenizer does"
    )
    assert unreachable(nfkc, "Zu\u0308rich").startswith(r"the tokenizer changes 'u\u0308rich' to '\xfcrich'")
    lower = normalising(tokenizer, normalizers.Lowercase())
    assert unreachable(lower, "Turin").startswith("the tokenizer changes 'Turin' to 'turin'")
    assert unreachable(lower, "turin") == ""
    lines = normalising(tokenizer, normalizers.Replace("\n", " "))
    two_lines = Template("{{ text }}", "{{ target }}")
    assert unreachable(lines, "one\ntwo", two_lines).startswith(r"the tokenizer changes '\ntwo' to ' two'")
    assert unreachable(tokenizer, "one\ntwo", two_lines) == ""
    assert unreachable(tokenizer, "one\ntwo").startswith(r"a prediction ends at the stop text '\n' within it")
    own = Template("{{ text }}", "{{ target }}<|user|>")
    assert unreachable(tokenizer, "Turin", own) == (
        "decoding leaves out the special token '<|user|>' in it; take it out of the target"
    )
    # Whoever names the references trains the model to write a token that no metric sees.
    with_references = Template("{{ text }}", "{{ target }}<|user|>", references="[target]", stop=("<|user|>",))
    assert unreachable(tokenizer, "Turin", with_references) == ""


def test_unknown_characters_and_cleaned_spaces_are_causes():
    exact, cleaning = word_tokenizer(), word_tokenizer(clean_up_tokenization_spaces=True)
    assert unreachable(exact, "Ada lives in Turin") == ""
    assert unreachable(exact, "Ada lives in Oslo").startswith("the tokenizer has no token for a character of 'Oslo'")
    assert unreachable(exact, "Ada .") == unreachable(cleaning, "Ada.") == ""
    assert unreachable(cleaning, "Ada .").startswith("the tokenizer's clean_up_tokenization_spaces changes its spaces")


def test_a_prediction_is_never_held_to_a_target_when_choices_are_scored(tokenizer):
    lower = normalising(tokenizer, normalizers.Lowercase())
    template = Template("{{ text }}", "Yes", answer_choices="Yes ||| No")
    assert Encoder(template, lower).row({"text": "Ada"})["unreachable"] == ""
    assert Encoder(template, lower, score_choices=False).row({"text": "Ada"})["unreachable"]


def test_training_names_the_rows_and_refuses_a_split_of_them(recipe_file, tmp_path, capsys, caplog, monkeypatch):
    forbid_model_loading(monkeypatch)
    rows = question_rows(24)
    for number in (3, 7, 8, 9):
        rows[number]["answers"]["text"] = ["Turin\nand Oslo"]
    write_jsonl(tmp_path / "train.jsonl", rows)
    assert main(["check", str(recipe_file())]) == 0
    assert "train: 24 rows, none cut, 4 with a target that no prediction can be" in capsys.readouterr().out
    assert "train: 4 of 24 targets are texts that no prediction can be. The first: " in caplog.text
    assert re.search(r"train.jsonl, line 4: a prediction ends at the stop text .*; .*jsonl, line 8: ", caplog.text)
    for row in rows:
        row["answers"]["text"] = ["Turin\nand Oslo"]
    for split, streaming in (("test", "false"), ("train", "false"), ("train", "true")):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
        assert main(["train", str(recipe_file()), "--streaming", streaming]) == 1
        message = f"{split}.jsonl: 24 of 24 targets are texts that no prediction can be. The first: "
        assert message in capsys.readouterr().err


def test_a_stop_that_is_a_special_token_ends_a_prediction(tokenizer, llama):
    stop = ("<|user|>",)
    ids = [*tokenizer(" Turin").input_ids, 3, *tokenizer(" Oslo").input_ids]
    assert decode([ids], tokenizer, stop) == ["Turin"] and decode([ids], tokenizer) == ["Turin Oslo"]
    rows = torch.tensor([ids, [id if id != 3 else 4 for id in ids]])
    criterion = StopTexts(tokenizer, stop)
    ended = [criterion(rows[:, : step + 1], None).tolist() for step in range(len(ids))]
    assert ended == [[3 in ids[: step + 1], False] for step in range(len(ids))]
    source = torch.tensor([[5, 6, 7]])
    written = llama.generate(source, max_new_tokens=9, do_sample=False)[0].tolist()
    special = copy.deepcopy(tokenizer)
    token = tokenizer.convert_ids_to_tokens(written[5])
    special.add_special_tokens({"extra_special_tokens": [token]})
    settings = text_settings(llama, special, (token,), {})
    stopped = llama.generate(source, max_new_tokens=9, do_sample=False, **settings)[0].tolist()
    assert stopped == written[: written.index(written[5], 3) + 1] and len(stopped) < len(written)


def test_a_special_token_with_other_text_is_no_stop(tokenizer, recipe_file, tmp_path, capsys, monkeypatch):
    check_stop(tokenizer, ("<|user|>", " <eos>\n", "\n"), "mine")
    with pytest.raises(TemplateError, match=r"stop holds '<\|user\|>Ada', which has the special token '<\|user\|>'"):
        check_stop(tokenizer, ("<|user|>Ada",), "mine")
    forbid_model_loading(monkeypatch)
    (tmp_path / "mine.yaml").write_text('source: "{{ question }}"\ntarget: x\nstop: ["<eos>Ada"]\n')
    assert main(["check", str(recipe_file(template=tmp_path / "mine.yaml"))]) == 2
    assert "stop holds '<eos>Ada'" in capsys.readouterr().err


def test_predictions_that_reach_the_limit_are_known_by_their_last_token(tokenizer):
    word = tokenizer(" Turin").input_ids
    line = tokenizer("\nOslo").input_ids
    rows = [word, [*word, 1], [*word, 0, 0], [*word, -100], [*word, *line], [*word, 3], line, []]
    texts, limited = decode_to_limit(rows, tokenizer, ("\n", "<|user|>"))
    assert texts == ["Turin"] * 6 + ["Oslo", ""]
    assert limited == [True, False, False, False, False, False, True, False]


def test_a_cut_that_takes_the_answer_away_is_counted(tokenizer):
    rows = question_rows(9)
    for row in rows[3:6]:  # These answers are at the beginning, too.
        row["context"] = f"{row['answers']['text'][0].upper()}. {row['context']}"
    for row in rows[6:]:
        row["answers"]["text"] = ["nowhere"]
    encoder = Encoder(Template.load("question_answering/plain"), tokenizer, max_source_tokens=24)
    for training in (False, True):
        encoded, report = encode(Dataset.from_list(rows), encoder, training=training)
        assert report.cut_rows >= 7 and report.cut_answers == 3 and "3 whose answer was cut away" in str(report)
    assert not {"answer_cut", "unreachable", "reference_tokens"} & {*encoded.column_names}


def test_references_and_targets_that_are_too_long_are_counted_apart(tokenizer):
    rows = question_rows(4)
    long = "a very long answer that goes on and on " * 3
    rows[0]["answers"]["text"] = [long]
    rows[1]["answers"]["text"] = [long, "Oslo"]
    rows[2]["question"] = long * 9
    encoder = Encoder(Template.load("question_answering/plain"), tokenizer, max_source_tokens=60, max_target_tokens=8)
    _, report = encode(Dataset.from_list(rows), encoder, training=True, drop_overlong=True, max_new_tokens=8)
    assert (report.rows, report.dropped_rows, report.dropped_targets) == (1, 3, 2)
    assert "3 left out (2 for their target)" in str(report)
    _, report = encode(Dataset.from_list(rows[:2]), encoder, max_new_tokens=8)
    assert report.long_references == 1 and "1 with references over generation_max_length" in str(report)
    length = len(tokenizer("Oslo").input_ids)
    for limit, count in ((length, 0), (length - 1, 1)):
        rows[3]["answers"]["text"] = ["Oslo"]
        assert encode(Dataset.from_list(rows[3:]), encoder, max_new_tokens=limit)[1].long_references == count


def test_advice_on_rows_that_are_too_long_names_settings_that_help(recipe_file, tmp_path, capsys):
    long = {"question": "Where does Ada live? " * 30}
    for split, flags, expected in (
        (
            "test",
            ["--drop_overlong", "true"],
            "test.jsonl: drop_overlong leaves out training rows only, and here 9 rows",
        ),
        ("test", [], "raise it, or name question in truncate (the same"),
        ("train", [], "raise it, or name question in truncate, or set drop_overlong"),
    ):
        recipe = recipe_file()
        write_jsonl(tmp_path / f"{split}.jsonl", [row | long for row in question_rows(9)])
        assert main(["check", str(recipe), *flags]) == 1
        assert expected in capsys.readouterr().err
