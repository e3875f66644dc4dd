"""Evaluated rows that are also training rows: exact or near, counted once, reported before a model loads."""

import json
import random
from itertools import accumulate, product

import pytest
from datasets import Dataset
from helpers.models import forbid_model_loading
from helpers.rows import question_rows, write_jsonl

from prompt_tuning.cli.main import main
from prompt_tuning.data import leakage
from prompt_tuning.data.leakage import NEAR, find_leaks, nearest_sources
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.support.text import words
from prompt_tuning.templates.languages import language_variables
from prompt_tuning.templates.promptsource import convert
from prompt_tuning.templates.template import Template

PLAIN = Template.load("question_answering/plain")
SUMMARY = Template.load("summarization/instruction_long")
STORY = (
    "The river boat left the harbour before dawn with nine crates of oranges, a piano, and the mayor's youngest "
    "daughter, who had promised to write home from every town on the way."
)


def qa(context, question, answer="Turin"):
    return {"context": context, "question": question, "answers": {"text": [answer], "answer_start": [0]}}


def leaks(template, rows, train, languages=None, **settings):
    return find_leaks(template, languages, Dataset.from_list(rows), Dataset.from_list(train), **settings)


def test_every_row_is_counted_once_in_the_worst_list():
    train = [{"document": STORY, "summary": "A boat leaves."}, {"document": "Tea.", "summary": "Tea."}]
    train += [{"document": "Tea.", "summary": "Hot tea."}]
    rows = [
        {"document": f" {STORY.upper()}\n", "summary": "a boat  leaves."},
        {"document": STORY, "summary": "A piano travels."},
        {"document": STORY.replace("nine", "ten"), "summary": "A boat leaves."},
        {
            "document": "Something else entirely, of about as many words as a row may have.",
            "summary": "A boat leaves.",
        },
        {"document": "tea.", "summary": "Hot tea."},
    ]
    report = leaks(SUMMARY, rows, train)
    assert report.same_target == ((0, 0), (4, 2)) and report.other_target == ((1, 0),) and report.near == ((2, 0),)
    assert report.shared_passages is None
    assert report.facts() == {
        "rows": 5, "same_target": 2, "other_target": 1, "near": 1, "demonstrated": 0, "initial_text": 0,
        "shared_passages": None,
        "first": {"same_target": [(0, 0), (4, 2)], "other_target": [(1, 0)], "near": [(2, 0)]},
    }  # fmt: skip


def test_words_of_the_template_do_not_make_rows_near():
    long = Template(source=f"{STORY} {STORY} {{{{ document }}}} {STORY}", target="{{ summary }}")
    train, rows = [{"document": "Red cats.", "summary": "s"}], [{"document": "Blue dogs.", "summary": "s"}]
    assert leaks(long, rows, train).near == ()
    in_a_branch = Template(f"{{% if document %}}{STORY} {{{{ document }}}}{{% endif %}}", "{{ summary }}")
    assert leaks(in_a_branch, rows, train).near == ()
    assert leaks(in_a_branch, train, train).same_target == ((0, 0),)


def test_another_question_about_a_passage_is_not_a_leak():
    train = [qa(STORY, "Who had promised to write home from every single town along the river?")]
    rows = [
        qa(STORY, "How many crates of oranges were on board of the boat that left the harbour?"),
        qa(STORY + " So it was.", "Who had promised to write home from every single town along the Rhine?"),
        qa("Another passage.", "Who had promised to write home from every single town along the river?"),
        qa(STORY, "Who had promised to write home from every single town along the river?", "Oslo"),
    ]
    report = leaks(PLAIN, rows, train)
    assert report.other_target == ((3, 0),) and report.near == ((1, 0),) and report.shared_passages == 1


def test_promptsource_templates_are_compared_value_by_value():
    entry = {"jinja": "{{ context }}\nQuestion: {{ question }} ||| {{ answers.text[0] }}"}
    template = Template.from_dict(convert(entry, "own"))
    assert template.source.startswith("{% filter trim %}")
    asked = ["Who had promised to write home from every single town?", "How many crates were on board of the boat?"]
    report = leaks(template, [qa(STORY, asked[0])], [qa(STORY, asked[1])])
    assert report.near == () and report.shared_passages == 1


def test_contexts_that_are_not_text_and_internal_marks_are_compared():
    template = Template("{% if context %}{{ context | join(' ') }}{% endif %}{{ question }}", "{{ answers.text[0] }}")
    rows = [qa(None, "Who?"), qa(["a", "b"], "Where?")]
    assert find_leaks(template, None, rows_of(rows), rows_of(rows)).shared_passages == 0
    marked = [qa("An odd \ue001 sign from a file.", "What does it say on the wall?")]
    assert leaks(PLAIN, marked, marked).same_target == ((0, 0),)


def rows_of(rows):
    """Return rows whose contexts have several types, because Arrow refuses them in one column."""

    class Rows(list):
        def __getitem__(self, key):
            return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    return Rows(rows)


def test_a_translation_is_compared_only_by_its_source():
    template = Template.load("translation/plain")
    languages = language_variables("fr", "en")
    train = [{"translation": {"fr": "Bonjour.", "en": "Good morning."}}]
    rows = [
        {"translation": {"fr": "bonjour.", "en": "Hello."}},
        {"translation": {"fr": "Salut.", "en": "Good morning."}},
    ]
    report = leaks(template, rows, train, languages)
    assert report.other_target == ((0, 0),) and not report.same_target and not report.near


def test_a_language_without_spaces_is_compared_by_its_characters():
    text = "船在黎明前离开港口，船上有九箱橙子、一架钢琴和市长最小的女儿，她答应从沿途的每个城镇写信回家。"
    train = [{"document": text, "summary": "s"}]
    other = text[::-1]
    report = leaks(
        SUMMARY, [{"document": document, "summary": "s"} for document in (text.replace("九", "十"), other)], train
    )
    assert report.near == ((0, 0),)


def test_vowel_signs_are_part_of_a_word_and_texts_of_signs_are_compared():
    assert words("दिल्ली की कीमत") == ["दिल्ली", "की", "कीमत"]
    asked = [{"document": text, "summary": "s"} for text in ("किताब की कीमत कितनी है", "😀😀")]
    train = [{"document": text, "summary": "s"} for text in ("कुताब के कामत कोतना हो", "😡!")]
    assert leaks(SUMMARY, asked, train).near == ()


def test_the_search_for_near_rows_ends_when_very_many_share_words(monkeypatch, caplog):
    monkeypatch.setattr(leakage, "MAX_COMPARED", 100)
    monkeypatch.setattr(leakage, "USUAL_CANDIDATES", 1)
    phrases = [[f"the {number} {side} phrase here" for side in ("left", "right")] for number in range(5)]
    rows = [{"document": ". ".join(texts), "summary": "s"} for texts in product(*phrases)]
    others = [{"document": f"{STORY} {number}", "summary": "s"} for number in range(9)]
    train = [*others, *({**row, "document": f"{row['document']} again"} for row in rows), *rows, *others]
    assert leaks(SUMMARY, rows, train).same_target == tuple((number, 41 + number) for number in range(32))
    assert "near rows were looked for only in the first" in caplog.text
    monkeypatch.undo()
    caplog.clear()
    assert len(leaks(SUMMARY, rows, train).same_target) == 32 and not caplog.text


def test_nearest_sources_finds_what_comparing_every_pair_finds():
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(300)]
    weights = [*accumulate(1 / (number + 1) for number in range(300))]

    def text(length):
        return " ".join(draw.choices(vocabulary, cum_weights=weights, k=length))

    def changed(text):
        words = text.split()
        for _ in range(draw.randint(1, 5)):
            words[draw.randrange(len(words))] = draw.choice(vocabulary)
        return " ".join(words[draw.randint(0, 3) :])

    passages = [text(60) for _ in range(8)]
    candidates = [(draw.choice(passages), text(draw.randint(4, 40))) for _ in range(150)]
    asked = [(draw.choice((passage, changed(passage))), changed(question)) for passage, question in candidates[:100]]
    nearest = nearest_sources(candidates, asked)
    near = leakage._alike
    sets = {source: [leakage._shingles(text) for text in source] for source in (*candidates, *asked)}
    expected = {}
    for source in asked:
        places = [place for place, other in enumerate(candidates) if near(sets[source], sets[other])]
        expected |= {source: places[0]} if places else {}
    assert nearest == expected and 20 < len(nearest) < 90


def test_training_rows_that_the_template_cannot_print_match_no_row():
    rows = [qa("Ada sails.", "Who sails?"), qa("Ben cooks.", "Who cooks?")]
    report = leaks(PLAIN, rows, [qa("Ada sails.", None), rows[1]])
    assert report.same_target == ((1, 1),) and not report.near


def test_sources_are_near_from_a_jaccard_index_of_0_6():
    def near(shared):
        # Both texts have ten runs of three words, and share as many as `shared` says.
        one = " ".join(f"w{number}" for number in range(12))
        other = " ".join([*one.split()[: shared + 2], *(f"v{number}" for number in range(10 - shared))])
        return bool(nearest_sources([(one,)], [(other,)]))

    assert NEAR == 0.6 and [near(shared) for shared in (10, 8, 7, 5)] == [
        True,
        True,
        False,
        False,
    ]  # The index of 8 is 8/12, of 7 it is 7/13.


def test_rows_are_not_compared_because_of_words_that_all_rows_share(monkeypatch):
    compared = []
    monkeypatch.setattr(leakage, "_alike", lambda *pair: compared.append(pair) or False)
    draw = random.Random(0)
    phrases = [" ".join(f"w{draw.randrange(900)}" for _ in range(8)) for _ in range(300)]

    def sources(count):
        # Half of every row is in all rows, and every phrase of the rest is in some other rows.
        return [(" ".join([STORY, *draw.sample(phrases, 4)]),) for _ in range(count)]

    nearest_sources(sources(200), sources(100))
    assert 0 < len(compared) < 200 * 100 * 0.1


def test_rows_are_compared_with_demonstrations_and_the_initial_text(tmp_path):
    rows = question_rows(6)
    few_shot = Template(PLAIN.source, PLAIN.target, demonstrations=(rows[2], {**rows[4], "question": "Who?"}))
    text = PLAIN.render(rows[5]).source.lower() + " Riga\n\n"
    report = find_leaks(few_shot, None, Dataset.from_list(rows), initial_text=text)
    assert report.demonstrated == (2,) and report.initial_text == (5,)
    assert report.same_target == report.near == ()  # There are no training rows.
    assert find_leaks(few_shot, None, Dataset.from_list(rows)).initial_text == ()


@pytest.mark.parametrize("selection", ["random", "bm25"])
def test_rows_near_a_demonstration_are_counted_without_training(selection, recipe_file, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [row | {"context": row["context"] + " Truly."} for row in question_rows(24)])
    write_jsonl(tmp_path / "validation.jsonl", question_rows(6))
    shown = {"method": "none", "num_demonstrations": 1, "demonstration_selection": selection, "max_source_tokens": 256}
    recipe = load_recipe(recipe_file(**shown, num_virtual_tokens=None))
    assert prepare(recipe, ("validation",)).leakage["validation"]["near"] == 6


def test_leaks_are_logged_before_the_model_loads_and_saved_in_the_results(recipe_file, tmp_path, capsys, monkeypatch):
    recipe = str(recipe_file(init="text", init_text="Where does Ada live?", num_virtual_tokens=None))
    rows = question_rows(24)
    write_jsonl(tmp_path / "validation.jsonl", [qa("The moon is far.", f"How far, {name}?") for name in "abcdef"])
    unlike = [qa("The ferry to Oslo is late.", f"Why, {name}?", "a storm") for name in "abc"]
    test = [*unlike, rows[7], rows[9] | {"answers": {"text": ["Peru"], "answer_start": [0]}}]
    write_jsonl(tmp_path / "test.jsonl", test)
    assert main(["check", recipe]) == 0
    errors = capsys.readouterr().err
    assert f"is in the training split with the same target ({tmp_path}/test.jsonl, line 4 = {tmp_path}/" in errors
    same = f"test: 1 of 5 rows is in the training split with the same target ({tmp_path}/test.jsonl, line 4 = "
    assert f"{same}{tmp_path}/train.jsonl, line 8)\n" in errors
    assert f"1 of 5 rows is in the training split with another target ({tmp_path}/test.jsonl, line 5" in errors
    assert "validation: none of its 6 rows is in the training split" in errors
    with monkeypatch.context() as patch:
        forbid_model_loading(patch)
        with pytest.raises(pytest.fail.Exception, match="a base model was loaded"):
            main(["train", recipe])
        assert same in capsys.readouterr().err
    assert main(["train", recipe, "--save_strategy", "no"]) == 0
    leakage_facts = json.loads((tmp_path / "run" / "results.json").read_text())["leakage"]
    assert set(leakage_facts) == {"validation", "test"} and leakage_facts["validation"]["same_target"] == 0
    assert (
        leakage_facts["test"]["same_target"],
        leakage_facts["test"]["other_target"],
        leakage_facts["test"]["near"],
    ) == (1, 1, 0)
    assert leakage_facts["test"]["first"]["same_target"] == [[3, 7]]
    capsys.readouterr()
    write_jsonl(tmp_path / "test.jsonl", rows)
    few = ["--num_demonstrations", "2", "--max_source_tokens", "160", "--output_dir", str(tmp_path / "few")]
    assert main(["evaluate", recipe, *few]) == 0
    assert "2 of 24 rows have the source of a demonstration" in capsys.readouterr().err
    leakage_facts = json.loads((tmp_path / "few" / "results.json").read_text())["leakage"]["test"]
    assert leakage_facts["demonstrated"] == 2
