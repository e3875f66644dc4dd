"""Training rows shown before each source: the template's own format, inside the budget, never the row itself."""

import json
import sys
from collections import Counter
from decimal import Decimal
from itertools import pairwise

import pytest
from datasets import Dataset
from helpers.rows import question_rows, write_jsonl

from prompt_tuning.cli.main import main
from prompt_tuning.encoding.dataset import encode
from prompt_tuning.encoding.demonstrations import Demonstrations
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import DataError, OverlongError, RecipeError, TemplateError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.templates.template import Template

PLAIN = Template.load("question_answering/plain")
SENTIMENT = Template(source="Review: {{ text }}\nVerdict:", target="{{ verdict }}")


def reviews(count):
    return [
        {"text": f"Film {number} lasts {number} hours.", "verdict": "bad" if number % 8 else "good"}
        for number in range(count)
    ]


def choose(tokenizer, rows, selection, count=4, seed=0, template=PLAIN, **settings):
    encoder = Encoder(template, tokenizer, **settings)
    return Demonstrations.choose(encoder, Dataset.from_list(rows), count, selection, seed)


def test_random_demonstrations_depend_on_the_seed_and_start_every_row(tokenizer):
    rows, others = question_rows(24), Dataset.from_list(question_rows(6, 3))
    chosen = choose(tokenizer, rows, "random")
    assert chosen.fixed == choose(tokenizer, rows, "random").fixed
    assert chosen.fixed != choose(tokenizer, rows, "random", seed=1).fixed
    shown = chosen.encoder.template.demonstrations
    assert [set(row) for row in shown] == [{"context", "question", "answers"}] * 4  # The template does not read id.
    assert [row["context"] for row in shown] == [rows[number]["context"] for number in chosen.fixed]
    encoded, report = encode(others, chosen.encoder)
    text = "".join(f"{PLAIN.render(row).source} {row['answers']['text'][0]}\n\n" for row in shown)
    assert all(source.startswith(text) for source in encoded["source"])
    assert (
        report.common_prefix_length >= len(tokenizer(text).input_ids) - 1
        and report.rows_with_fewer_demonstrations == 0
    )
    assert encoded[0]["source"] == text + PLAIN.render(others[0]).source


def test_the_templates_own_demonstrations_come_first_and_stay(tokenizer):
    template_row = {"context": "A tower.", "question": "What?", "answers": {"text": ["a tower"]}}
    template = Template(PLAIN.source, PLAIN.target, demonstrations=(template_row,), truncate=("context",))
    chosen = choose(tokenizer, question_rows(9), "random", 2, template=template)
    assert chosen.encoder.template.demonstrations[0] == template_row and chosen.encoder.num_chosen == 2
    tight = Encoder(chosen.encoder.template, tokenizer, max_source_tokens=45, num_chosen=2)
    encoder, omitted = tight.fit_demonstrations(question_rows(1, 4)[0])
    assert encoder.template.demonstrations == (template_row,) and omitted == 2


def test_balanced_demonstrations_have_every_target_equally_often(tokenizer):
    rows = reviews(40)  # One in eight is good.
    for seed in range(5):
        chosen = choose(tokenizer, rows, "balanced", 6, seed, SENTIMENT)
        assert Counter(rows[number]["verdict"] for number in chosen.fixed) == {"good": 3, "bad": 3}
        verdicts = [rows[number]["verdict"] for number in chosen.fixed]
        assert all(one != other for one, other in pairwise(verdicts))
    few = choose(tokenizer, rows, "balanced", 14, 0, SENTIMENT)
    assert Counter(rows[number]["verdict"] for number in few.fixed) == {"good": 5, "bad": 9}  # Only five are good.


def test_bm25_shows_the_nearest_rows_first(tokenizer):
    rows = [{"text": text, "verdict": "v"} for text in ("red cat", "blue dog", "blue boat sails", "the blue boat")]
    chosen = choose(tokenizer, rows, "bm25", 2, template=SENTIMENT)
    asked = Dataset.from_list([{"text": "A BLUE BOAT", "verdict": "w"}, {"text": "a red dog", "verdict": "w"}])
    nearest = chosen.nearest(asked)
    assert set(nearest[0]) == {2, 3} and set(nearest[1]) == {0, 1}
    encoded, _ = encode(asked, chosen.encoder, candidates=chosen.train, nearest=nearest)
    first, second = (rows[number]["text"] for number in nearest[0])
    assert encoded[0]["source"] == (
        f"Review: {first}\nVerdict: v\n\nReview: {second}\nVerdict: v\n\nReview: A BLUE BOAT\nVerdict:"
    )


def test_bm25_shows_the_earlier_of_equally_near_rows(tokenizer):
    rows = [{"text": f"{word} boat", "verdict": "v"} for word in ("red", "blue", "new", "old", "tall", "wet", "gold")]
    chosen = choose(tokenizer, rows, "bm25", 2, template=SENTIMENT)
    asked = Dataset.from_list([{"text": "boat", "verdict": "w"}, {"text": "unknown words", "verdict": "w"}])
    assert chosen.nearest(asked) == [[0, 1], [0, 1]]
    signs = choose(tokenizer, [{"text": sign, "verdict": "v"} for sign in "!?.;"], "bm25", 1, template=SENTIMENT)
    with pytest.raises(DataError, match="no training row's source has a word"):
        signs.nearest(asked)


@pytest.mark.parametrize("selection", ["random", "bm25"])
def test_no_row_is_shown_itself_or_a_row_of_its_source(tokenizer, selection):
    rows = question_rows(12)
    rows += [row | {"context": row["context"].upper() + " "} for row in rows]  # They differ only in case and space.
    chosen = choose(tokenizer, rows, selection, 5)
    train = chosen.train
    held_out = chosen.held_out() if selection == "random" else frozenset()
    encoded, report = encode(
        train, chosen.encoder, training=True, candidates=train, nearest=chosen.nearest(train), held_out=held_out
    )
    for row in encoded:
        source = PLAIN.render(rows[row["row"]], with_target=False).source.casefold().strip()
        assert row["source"].casefold().count(source.split("\nanswer:")[0]) == 1
        assert row["source"].count("Answer:") == 6
    if selection == "random":  # Both rows of five sources are held out.
        assert report.held_out_rows == 10 and len(encoded) == 14 and not set(encoded["row"]) & set(chosen.fixed)
        assert (
            "14 rows, none cut, 10 left out as they are demonstrations" in str(report)
            and report.common_prefix_length > 100
        )
    else:
        assert len(encoded) == 24
        assert all(len({number % 12 for number in numbers}) == 5 for numbers in chosen.nearest(train))


def test_an_evaluated_row_that_is_a_demonstration_is_shown_the_others(tokenizer):
    rows = question_rows(12)
    chosen = choose(tokenizer, rows, "random", 3)
    encoded, report = encode(Dataset.from_list([rows[chosen.fixed[1]], *question_rows(2, 5)]), chosen.encoder)
    assert [source.count("Answer:") for source in encoded["source"]] == [
        3,
        4,
        4,
    ] and report.rows_with_fewer_demonstrations == 0


@pytest.mark.parametrize("selection", ["random", "bm25"])
def test_the_last_demonstrations_are_omitted_before_a_column_is_cut(tokenizer, selection):
    rows, asked = question_rows(24), Dataset.from_list(question_rows(6, 3))
    whole = choose(tokenizer, rows, selection)
    full, _ = encode(asked, whole.encoder, candidates=whole.train, nearest=whole.nearest(asked))
    for budget in (max(map(len, full["input_ids"])), 130, 60, 40, 28):
        chosen = choose(tokenizer, rows, selection, max_source_tokens=budget)
        encoded, report = encode(asked, chosen.encoder, candidates=chosen.train, nearest=chosen.nearest(asked))
        shown = [source.count("Answer:") - 1 for source in encoded["source"]]
        assert [4 - count for count in shown] == encoded["omitted_demonstrations"]
        assert report.omitted_demonstrations == sum(encoded["omitted_demonstrations"])
        assert report.rows_with_fewer_demonstrations == sum(
            count < 4 for count in shown
        ) and report.rows_without_demonstrations == shown.count(0)
        for row, all_of_them, count in zip(encoded, full, shown, strict=True):
            assert not row["cut_tokens"] or not count
            parts = [encoded_row["source"].split("\n\n") for encoded_row in (row, all_of_them)]
            assert len(parts[0]) == count + 1 and parts[0][:count] == parts[1][:count]  # The nearest stay, in order.
            if count < 4:  # One more would not fit.
                longer = "\n\n".join([*parts[1][: count + 1], parts[1][-1]])
                assert len(tokenizer(longer).input_ids) > budget
    assert report.rows_without_demonstrations > 0 and report.cut_rows > 0
    assert f"with fewer demonstrations ({report.omitted_demonstrations} in all did not fit" in str(report)
    with pytest.raises(OverlongError):
        choose(tokenizer, rows, "random", max_source_tokens=5).encoder.row(asked[0])


def test_a_chat_template_shows_them_as_turns(tokenizer):
    chosen = choose(tokenizer, question_rows(9), "random", 2, template=Template.load("question_answering/chat"))
    source = chosen.encoder.row(question_rows(1, 5)[0])["source"]
    roles = [part.split("|>")[0] for part in source.split("<|")[1:]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    answers = [row["answers"]["text"][0] for row in chosen.encoder.template.demonstrations]
    assert [f"<|assistant|>{answer}<eos>" in source for answer in answers] == [True, True]


def test_several_workers_encode_the_same_rows_and_the_cache_repeats_them(recipe_file, tmp_path):
    settings = dict(num_demonstrations=2, demonstration_selection="bm25", max_source_tokens=200)
    recipe = load_recipe(recipe_file(**settings))
    once, again = prepare(recipe, ("test",)), prepare(recipe, ("test",))
    assert once.encoded["test"]._fingerprint == again.encoded["test"]._fingerprint
    assert set(once.encoded) == {"test"}  # Training rows are only chosen from.
    workers = prepare(load_recipe(recipe_file(**settings, preprocessing_num_workers=2)), ("test",))
    assert workers.encoded["test"].to_list() == once.encoded["test"].to_list()


def test_too_few_rows_that_the_template_can_write_are_an_error(tokenizer):
    rows = question_rows(4)
    rows[1]["question"] = None
    rows[2]["answers"] = {"text": [""], "answer_start": [0]}
    assert set(choose(tokenizer, rows, "random", 2).fixed) == {0, 3}
    with pytest.raises(DataError, match="num_demonstrations is 3 and the training split has 2 rows of different"):
        choose(tokenizer, rows, "random", 3)
    with pytest.raises(DataError, match="num_demonstrations is 2 and"):  # One may be the row itself.
        choose(tokenizer, rows, "bm25", 2)


def test_values_that_a_template_file_cannot_hold_are_an_error(tokenizer):
    template = Template("{{ price }} {{ question }}", "{{ answers.text[0] }}")
    rows = [row | {"price": Decimal("6.50")} for row in question_rows(4)]
    with pytest.raises(TemplateError, match=r"a demonstration holds Decimal\('6.50'\), which no template file can"):
        choose(tokenizer, rows, "random", 2, template=template)
    assert choose(tokenizer, [row | {"price": 6.5} for row in rows], "random", 2, template=template).fixed


def test_bm25_without_its_package_names_the_command(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(RecipeError, match=r"needs the package bm25s.*`pip install bm25s`"):
        choose(tokenizer, question_rows(9), "bm25")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_demonstrations": -1}, "num_demonstrations is -1; it must be at least 0"),
        ({"demonstration_selection": "bm25"}, "demonstration_selection is bm25 but num_demonstrations is 0"),
        ({"num_demonstrations": 2, "train_file": None}, "num_demonstrations is 2 but there are no training rows"),
    ],
)
def test_contradicting_settings_are_named(recipe_file, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file(**changes))


def test_a_budget_in_which_no_demonstration_fits_is_an_error(recipe_file, capsys):
    assert main(["check", str(recipe_file(num_demonstrations=2, max_source_tokens=30))]) == 1
    error = "not one of 2 demonstrations fits beside any row; raise max_source_tokens, which is 30"
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("selection", ["random", "balanced"])
def test_a_run_keeps_its_demonstrations_and_predict_shows_them(selection, recipe_file, tmp_path, capsys):
    recipe = str(recipe_file(num_demonstrations=3, demonstration_selection=selection, max_source_tokens=130))
    run, test = tmp_path / "run", tmp_path / "test.jsonl"
    assert main(["train", recipe, "--save_strategy", "no"]) == 0
    errors = capsys.readouterr().err
    assert (
        errors.count("train.jsonl, line ") >= 3
        and "21 rows, none cut, 3 left out as they are demonstrations" in errors
    )
    saved = Template.load(run / "template.yaml")
    assert len(saved.demonstrations) == 3
    written = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert any(row["source"].count("Answer:") < 4 for row in written)  # Some rows have room for fewer.
    assert main(["predict", "--adapter", str(run), "--input", str(test)]) == 0
    shown = capsys.readouterr()
    assert [json.loads(line)["prediction"] for line in shown.out.splitlines()] == [
        row["soft_prompt"] for row in written
    ]
    assert "of 9 rows have fewer demonstrations, to fit max_source_tokens" in shown.err
    assert (
        main(["evaluate", str(run / "recipe.yaml"), "--adapter", str(run), "--output_dir", str(tmp_path / "e")]) == 0
    )
    again = [json.loads(line) for line in (tmp_path / "e" / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [row["source"] for row in again] == [row["source"] for row in written]
    assert main(["train", str(run / "recipe.yaml"), "--output_dir", str(tmp_path / "again")]) == 0
    adapters = [(folder / "adapter_model.safetensors").read_bytes() for folder in (run, tmp_path / "again")]
    assert adapters[0] == adapters[1]


def test_bm25_evaluates_and_predict_refuses(recipe_file, tmp_path, capsys):
    recipe = str(recipe_file(num_demonstrations=2, demonstration_selection="bm25", max_source_tokens=160))
    assert main(["train", recipe, "--save_strategy", "no"]) == 0
    assert Template.load(tmp_path / "run" / "template.yaml").demonstrations == ()
    assert main(["evaluate", recipe, "--adapter", str(tmp_path / "run")]) == 0
    assert main(["render", recipe, "-n", "1", "--max_source_tokens", "80"]) == 0
    assert "demonstrations left out to fit it" in capsys.readouterr().out
    assert main(["predict", "--adapter", str(tmp_path / "run"), "--input", str(tmp_path / "test.jsonl")]) == 1
    error = capsys.readouterr().err
    assert "a run's folder holds no training rows; use `prompt-tuning evaluate` with your rows as test_file" in error


def test_initial_demonstrations_and_a_teacher_do_not_show_chosen_ones(recipe_file, tokenizer):
    shown = Template.load("question_answering/few_shot")
    longest = max(len(tokenizer(shown.render(row).source).input_ids) for row in question_rows(24))
    teacher_settings = dict(teacher_template="question_answering/few_shot", loss="kl", max_teacher_tokens=longest - 5)
    for changes in ({"init": "demonstrations", "num_virtual_tokens": None}, teacher_settings):
        changes = changes | {"max_source_tokens": 160}
        with_them = prepare(load_recipe(recipe_file(num_demonstrations=2, **changes)), ("train",))
        without = prepare(load_recipe(recipe_file(**changes)), ("train",))
        assert with_them.init_ids == without.init_ids
        if with_them.teacher_rows:  # Its demonstrations stay, and its context is cut.
            assert (
                with_them.teacher_rows["source"] == without.teacher_rows["source"]
                and max(without.teacher_rows["cut_tokens"]) == 5
            )


def test_demonstrations_are_a_setting_of_every_task(recipe_file, tmp_path):
    for name in ("one", "two"):
        write_jsonl(tmp_path / f"{name}.jsonl", question_rows(9))
    recipe = recipe_file(method="multitask_prompt_tuning", num_demonstrations=2, tasks="[a.yaml, b.yaml]")
    with pytest.raises(RecipeError, match="num_demonstrations has no effect with method multitask_prompt_tuning"):
        load_recipe(recipe)


def test_closed_questions_are_shown_balanced_answers(recipe_file, tmp_path, capsys):
    for split, count in (("train", 20), ("test", 6)):
        rows = question_rows(count, 0 if split == "train" else 3)
        for number, row in enumerate(rows):
            row["answers"] = {"text": ["no" if number % 5 else "yes"], "answer_start": [0]}
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    recipe = recipe_file(
        template="question_answering/yes_no", num_demonstrations=2, demonstration_selection="balanced",
        max_source_tokens=250, validation_file=None,
    )  # fmt: skip
    assert main(["train", str(recipe), "--save_strategy", "no"]) == 0
    saved = Template.load(tmp_path / "run" / "template.yaml")
    assert {row["answers"]["text"][0] for row in saved.demonstrations} == {"yes", "no"}
    capsys.readouterr()
    assert main(["predict", "--adapter", str(tmp_path / "run"), "--input", str(tmp_path / "test.jsonl")]) == 0
    predicted = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    assert predicted == [row["soft_prompt"] for row in rows] and set(predicted) <= {"yes", "no"}
