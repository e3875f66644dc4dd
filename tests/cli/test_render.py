"""The command render."""

from helpers.models import tiny_llama, tiny_sentencepiece
from helpers.rows import question_rows, write_jsonl

from prompt_tuning.cli.main import main


def test_what_differs_between_the_text_and_the_tokens_is_shown(recipe_file, tmp_path, capsys):
    tokenizer = tiny_sentencepiece()
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = question_rows(2)
    rows[0]["question"] = "Where is \u2603 <eos>?"
    write_jsonl(tmp_path / "odd.jsonl", rows)
    (tmp_path / "own.yaml").write_text("source: '{{ question }} '\ntarget: '{{ answers.text[0] }}'\n")
    settings = {"model_name_or_path": tmp_path / "model", "template": tmp_path / "own.yaml"}
    recipe = str(recipe_file(**settings, train_file=tmp_path / "odd.jsonl"))
    assert main(["render", recipe]) == 0
    first, second = capsys.readouterr().out.split("== ")[1:]
    assert "-- as it is written: 'Where is \u2603 <eos>? '" in first
    assert "-- as the tokenizer reads it: 'Where is <unk> <eos>? '" in first
    assert "-- special tokens in it: '<unk>'\n" in first
    assert "-- as it is written: 'Where does Bruno live? '" in second
    assert "as the tokenizer reads it" not in second and "special tokens" not in second


def test_nothing_is_added_where_nothing_differs(recipe_file, capsys):
    assert main(["render", str(recipe_file()), "-n", "1"]) == 0
    shown = capsys.readouterr().out
    assert "as it is written" not in shown and "as the tokenizer reads it" not in shown
