"""Model cards: their text from their facts, no placeholders, and snippets that run as printed."""

import contextlib
import copy
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.cards import check_card
from helpers.paths import ROOT
from helpers.rows import question_rows, write_jsonl
from helpers.trainers import soft_trainer
from huggingface_hub import ModelCard

from prompt_tuning.cli.main import main
from prompt_tuning.errors import DataError
from prompt_tuning.hub.upload import plan_upload
from prompt_tuning.reports.facts import card_facts
from prompt_tuning.reports.markdown import inline_code, plain_words
from prompt_tuning.reports.model_card import card_text, write_card, write_trainer_card
from prompt_tuning.runs import results as run_results

EVIL = "```\n# Evil\n````python\n</details>\n| a | `b` |\n~~~\n---\n[More Information Needed]"
RECIPE = {
    "model_name_or_path": "tiny-llama", "task": "question_answering", "train_file": "train.jsonl",
    "validation_file": "validation.jsonl", "test_file": "test.jsonl", "template": "question_answering/plain",
    "init": "text", "init_text": '"Answer briefly.\\nAnswer:"', "max_source_tokens": 40,
    "max_target_tokens": 12, "output_dir": "run", "lang": "en", "license": "apache-2.0", "learning_rate": 0.3,
    "per_device_train_batch_size": 4, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2,
    "logging_steps": 2, "load_best_model_at_end": "true", "use_cpu": "true", "disable_tqdm": "true",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory, model_folders):
    """Return a folder in which a tiny model was trained by relative names."""
    folder = tmp_path_factory.mktemp("home of ann")
    (folder / "tiny-llama").symlink_to(model_folders["llama"])
    for split, count, shift in (("train", 24, 0), ("validation", 6, 3), ("test", 9, 5)):
        write_jsonl(folder / f"{split}.jsonl", question_rows(count, shift))
    (folder / "recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in RECIPE.items()))
    with contextlib.chdir(folder):
        assert main(["train", "recipe.yaml"]) == 0
    return folder


@pytest.fixture
def run(home, monkeypatch):
    monkeypatch.chdir(home)
    return Path("run")


def outside_fences(text):
    """Return the lines of a card that are not in a fenced block (CommonMark 0.31, section 4.5)."""
    lines = []
    fence = None
    for line in text.splitlines():
        ticks = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if fence is None and ticks:
            fence = ticks[1]
        elif fence is None:
            lines.append(line)
        elif ticks and ticks[1].startswith(fence) and not line.strip(" `~"):
            fence = None
    assert fence is None
    return lines


def snippets(card):
    return re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


def printed(snippet):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(snippet, "README.md", "exec"), {})
    return out.getvalue().strip()


def test_the_whole_card(run):
    facts = card_facts(run)
    assert (run / "README.md").read_bytes().decode() == card_text(facts)
    facts["results"] |= {"train_seconds": 1.5, "evaluation_seconds": 0.5, "hardware": "CPU (x86_64), 1 thread"}
    facts["results"]["versions"] = dict.fromkeys(facts["results"]["versions"], "1.2.3")
    facts["example"] |= {"hard_prompt": "in Oslo", "soft_prompt": "Oslo"}  # A random model writes other texts.
    for entry in facts["log_history"]:
        entry |= {key: round(value, 1) for key, value in entry.items() if key.endswith("loss")}
    assert card_text(facts) == (ROOT / "tests" / "fixtures" / "expected_card.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT warns in its own generate.
@pytest.mark.parametrize(
    "changes", [[], ["--method=prefix_tuning", "--generation_num_beams=2", "--output_dir=prefix"]]
)
def test_the_cards_snippets_run_as_printed_and_print_its_example(changes, run):
    if changes:
        assert main(["train", "recipe.yaml", *changes]) == 0
        run = Path("prefix")
    card = (run / "README.md").read_text(encoding="utf-8")
    with (run / "predictions" / "test.jsonl").open(encoding="utf-8") as rows:
        expected = json.loads(next(rows))["soft_prompt"]
    ours, plain = snippets(card)
    assert "import prompt_tuning" not in plain and "from prompt_tuning" not in plain
    assert printed(ours) == printed(plain) == expected.strip()


def test_no_text_of_the_user_leaves_its_fence_or_cell(run):
    facts = copy.deepcopy(card_facts(run))
    facts["example"] |= {"source": EVIL, "soft_prompt": EVIL, "hard_prompt": EVIL, "references": [EVIL]}
    facts["results"]["example"] = {"context": EVIL, "question": EVIL}
    facts["results"] |= {"model": EVIL, "template": EVIL}
    facts["results"]["answers"] = {
        "expected": {EVIL: 1},
        "taken": {"soft_prompt": {EVIL: 1}},
        "always": {"answer": EVIL, "f1": 0},
    }
    facts["settings"] |= {"init_text": EVIL, "train_file": EVIL + ".json"}
    facts["template"] = {"source": EVIL, "target": EVIL, "stop": [EVIL]}
    card = ModelCard(card_text(facts))
    lines = outside_fences(card.text)
    assert card.data.license == "apache-2.0" and [line for line in lines if line.startswith("# ")] == ["# run"]
    assert lines.count("</details>") == sum(line.startswith("<details>") for line in lines) == 3
    table = [line for line in lines if "json" in line and line.startswith("|")]
    assert all(len(re.split(r"(?<!\\)\|", line)) == 7 for line in table) and len(table) == 3


LIVE = "<b>[x](http://evil) *y* www.evil.com\n# Evil\ue002# Evil\n---\nlicense: evil"


def places(value, path=()):
    """Yield the path of every text and number in nested facts, and of every key of a mapping."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(value, dict):
            yield (*path, key), True
        yield from places(item, (*path, key))
    if not isinstance(value, dict | list):
        yield path, False


def with_text(facts, path, is_key):
    """Return a copy of facts with LIVE at one place: as the value there, or as the key."""
    facts = copy.deepcopy(facts)
    *parents, last = path
    parent = facts
    for key in parents:
        parent = parent[key]
    if is_key:
        parent[LIVE] = parent.pop(last)
    else:
        parent[last] = LIVE
    return facts


def test_no_fact_of_a_run_becomes_markup_or_metadata(run):
    facts = card_facts(run)
    facts["results"] |= {
        "resumed_from": "checkpoint-2", "processes": 2, "trained_with": ["other"], "dataset_commit": "0" * 40,
        "changed_settings": {"3": {"seed": [1, 2]}}, "method": "vera",
    }  # fmt: skip
    facts["settings"] |= {"loss": "kl", "teacher_template": "t", "dataset_name": "d", "validation_size": 2}
    facts["log_history"] = facts["log_history"][:3]
    shown = 0
    for path, is_key in list(places(facts)):
        if path[1:2] == ("inputs",) or path[0] == "template":
            continue  # The card has no inputs, and the template is in a fence.
        try:
            card = ModelCard(card_text(with_text(facts, path, is_key)))
        except (ValueError, TypeError, KeyError, AttributeError, DataError):
            continue  # A fact of another kind is refused.
        shown += 1
        text = "\n".join(re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", line) for line in outside_fences(card.text))
        for markup in ("<b>", "[x](", "*y*", "www.", "# Evil"):
            assert markup not in text, (path, markup)
        # A card whose setting of this name is gone has no licence.
        assert card.data.license in ("apache-2.0", LIVE, None if path == ("settings", "license") else LIVE), path
    assert shown > 60


@pytest.mark.parametrize(
    "text",
    ["CPU (x86_64), 2 threads", "2.13.0+cpu", "rougeL", "greedy, up to 12 tokens", "step-2", "63.5 %", ""],
)
def test_plain_words_stay_as_they_are(text):
    assert plain_words(text) == text


@pytest.mark.parametrize("text", ["a_ b", "__init__", "1. a", "- a", "www.a.b", "a:b", "a@b", "<a>", "a\nb", "a*b*"])
def test_words_with_a_meaning_become_code(text):
    assert plain_words(text) == inline_code(text) == f"`{' '.join(text.split())}`"


def test_a_file_without_facts_and_an_incomplete_folder_are_reported(run, tmp_path, capsys):
    for name, text in (("gone.json", None), ("bad.json", "{"), ("empty.json", "{}")):
        if text is not None:
            (tmp_path / name).write_text(text)
        assert main(["card", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert f"{name}: " in error and ("not JSON" in error or "`prompt-tuning card RUN --output FILE.json`" in error)
    shutil.copytree(run, tmp_path / "copied")
    for name in ("predictions/test.jsonl", "recipe.yaml"):
        (tmp_path / "copied" / name).unlink()
        assert main(["card", str(tmp_path / "copied")]) == 1
        assert f"{name}: no such file, or an empty one" in capsys.readouterr().err


def test_the_card_names_no_folder_of_this_machine(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [f"--{split}_file={home / f'{split}.jsonl'}" for split in ("train", "validation", "test")]
    model = ["--model_name_or_path", str(home / "tiny-llama"), "--output_dir", str(tmp_path / "elsewhere")]
    assert main(["train", str(home / "recipe.yaml"), *files, *model, "--max_steps", "1"]) == 0
    card = (tmp_path / "elsewhere" / "README.md").read_text(encoding="utf-8")
    assert "tmp" not in card and "home of ann" not in card
    assert "adapter = 'elsewhere'" in card and "`tiny-llama`" in card and "train_file: train.jsonl" in card


def test_the_command_writes_the_card_again_from_the_folder_or_from_its_facts(run, tmp_path, capsys):
    text = (run / "README.md").read_bytes()
    (run / "README.md").unlink()
    facts = tmp_path / "card.json"
    for words in ([str(run)], [str(run), "--output", str(facts)], [str(facts)]):
        assert main(["card", *words]) == 0
    assert (run / "README.md").read_bytes() == facts.with_suffix(".md").read_bytes() == text
    capsys.readouterr()
    assert main(["evaluate", "recipe.yaml", "--output_dir", str(tmp_path / "hard")]) == 0
    assert main(["card", str(tmp_path / "hard")]) == 1
    assert "nothing was trained there. Name the folder of a finished train." in capsys.readouterr().err


def test_a_row_of_the_user_replaces_the_row_of_the_data(run, tmp_path, capsys):
    row = question_rows(1, 40)[0] | {"context": "The ferry Mira sailed from Oslo."}
    file, card = tmp_path / "row.json", tmp_path / "card.md"
    file.write_text(json.dumps(row))
    assert main(["card", str(run), "--example", str(file), "--output", str(card)]) == 0
    text = card.read_text(encoding="utf-8")
    with (run / "predictions" / "test.jsonl").open(encoding="utf-8") as rows:
        assert json.loads(next(rows))["source"] not in text
    assert "In Python, for a row that is not from the data:" in text and "The ferry Mira sailed from Oslo." in text
    assert text.count("Prediction, ") == 2 and row["answers"]["text"][0] in text
    slashed = tmp_path / "slashed"
    shutil.copytree(run, slashed)
    file.write_text(json.dumps(row | {"context": "/r/a: /b/c\n\n\n\n# T"}))
    assert main(["card", str(slashed), "--example", str(file)]) == main(["card", str(slashed)]) == 0
    assert "/r/a: /b/c\n\n\n\n# T" in (slashed / "README.md").read_text(encoding="utf-8")
    file.write_text(json.dumps(row))
    assert f"Prediction, with soft prompt:\n\n```text\n{printed(snippets(text)[0])}\n```" in text

    named = {"passage" if name == "context" else name: value for name, value in row.items()}
    renamed = tmp_path / "renamed"  # This run's data has other column names.
    shutil.copytree(run, renamed)
    with (renamed / "recipe.yaml").open("a", encoding="utf-8") as recipe:
        recipe.write("context_column: passage\n")
    file.write_text(json.dumps(named))
    assert main(["card", str(renamed), "--example", str(file)]) == 0

    capsys.readouterr()
    for wrong, reason in (
        ("{", "Expecting property name"),
        ("{}", "context"),
        ("[1]", "row.json, line 1: expected a JSON object, found list"),
    ):
        file.write_text(wrong)
        assert main(["card", str(run), "--example", str(file), "--output", str(card)]) == 1
        assert reason in capsys.readouterr().err
    assert card.read_text(encoding="utf-8") == text

    copied_run = tmp_path / "own"
    shutil.copytree(run, copied_run)
    file.write_text(json.dumps(row))
    for words in (["--example", str(file)], []):  # The second card and a push keep the row.
        assert main(["card", str(copied_run), *words]) == 0
        pushed = plan_upload(copied_run, "ann/rivers", "ann/tiny-llama")
        texts = [content if isinstance(content, bytes) else content.read_bytes() for content in pushed.values()]
        (data,) = {json.loads(line)["context"] for line in (run.parent / "test.jsonl").read_text().splitlines()[:1]}
        assert not any(data.encode() in content for content in texts)
        assert b"The ferry Mira sailed from Oslo." in pushed["README.md"]


@pytest.mark.parametrize("broken", ["card", "report"])
def test_a_failing_card_or_report_does_not_fail_the_run(broken, run, tmp_path, monkeypatch, caplog):
    def fail(folder, **options):
        raise ValueError("no luck")

    folder = shutil.copytree(run, tmp_path / "copy")
    names = {"card": "README.md", "report": "report.html"}
    for name in names.values():
        (folder / name).unlink()
    monkeypatch.setattr(run_results, f"write_{broken}", fail)
    run_results.write_pages(folder, "card", "report")
    again = f"`prompt-tuning {broken} {folder}` tries again"
    assert f"no {broken} was written (ValueError: no luck); the run is complete without it; {again}" in caplog.text
    assert {names[name] for name in names if not (folder / names[name]).exists()} == {names[broken]}


def test_the_card_is_written_before_the_report_and_names_the_resumed_checkpoint(home, tmp_path, monkeypatch):
    def interrupt(folder, **options):
        raise KeyboardInterrupt

    monkeypatch.chdir(home)
    monkeypatch.setattr(run_results, "write_report", interrupt)
    resumed = ["--resume_from_checkpoint", "run/checkpoint-2", "--output_dir", str(tmp_path / "other")]
    assert main(["train", "recipe.yaml", *resumed]) == 130
    assert (tmp_path / "other" / "results.json").is_file()
    assert re.search(r"4 steps in \S+ s since checkpoint-2", (tmp_path / "other" / "README.md").read_text())


def test_no_card_of_peft_or_trainer_remains(run, llama, tokenizer, tmp_path):
    """Look for both, because both write drafts with placeholders, PEFT into every checkpoint."""
    assert not [*run.glob("checkpoint-*/README.md")]
    trainer = soft_trainer(llama, tokenizer, tmp_path / "ours", save_steps=1)
    trainer.train()
    trainer.save_model()
    assert "[More Information Needed]" in (tmp_path / "ours" / "README.md").read_text()
    trainer.create_model_card("en", "mit", model_name="mine")
    card = check_card(tmp_path / "ours" / "README.md")
    assert card.data.license == "mit" and card.data.language == ["en"] and "# mine\n" in card.text
    assert "A soft prompt of 4 virtual tokens" in card.text and "| **2, saved** " in card.text


def test_every_argument_of_trainers_own_card_is_in_the_card_or_named(llama, tokenizer, tmp_path, caplog):
    trainer = soft_trainer(llama, tokenizer, tmp_path)
    trainer.train()
    trainer.create_model_card(
        language=["en", "pt-BR"], license="mit", tags=["qa", "short"], model_name="mine", finetuned_from="org/base",
        tasks=["question-answering"], dataset_tags=["squad", "org/rows"], dataset=["SQuAD"], dataset_args=["plain"],
    )  # fmt: skip
    card = check_card(tmp_path / "README.md")
    assert card.data.language == ["en", "pt"] and card.data.license == "mit" and card.data.base_model == "org/base"
    assert card.data.tags[-2:] == ["qa", "short"] and card.data.datasets == ["squad", "org/rows"]
    assert "README.md: tasks, dataset, dataset_args not in the card" in caplog.text
    trainer.create_model_card(tags="qa", dataset_tags="squad", language="en")
    card = check_card(tmp_path / "README.md")
    assert card.data.tags[-1] == "qa" and card.data.datasets == ["squad"] and card.data.language == ["en"]


def test_the_card_of_a_run_keeps_its_facts_and_names_the_arguments_that_it_does_not_use(run, caplog):
    written = (run / "README.md").read_text()
    stub = SimpleNamespace(args=SimpleNamespace(output_dir=str(run)))
    write_trainer_card(stub, language=["de"], tags=["qa"])
    assert (run / "README.md").read_text() == written and "README.md: lang, tags not in the card" in caplog.text


CARDS = sorted((ROOT / "model_cards").glob("*.json"))


@pytest.mark.parametrize("facts", CARDS, ids=lambda path: path.stem)
def test_the_cards_of_reference_runs_match_their_facts(facts, tmp_path):
    written = facts.with_suffix(".md")
    text = written.read_text(encoding="utf-8")
    assert write_card(facts, tmp_path / "card.md").read_text(encoding="utf-8") == text, (
        "`make cards` writes them again"
    )
    check_card(written)
    saved_facts = json.loads(facts.read_text(encoding="utf-8"))
    example = ROOT / "model_cards" / "examples" / facts.name  # These rows were written for this project.
    file = example if example.is_file() else ROOT / "recipes" / "quickstart" / "test.jsonl"
    shown = saved_facts["results"]["example"]
    assert shown and any(shown.items() <= json.loads(row).items() for row in file.read_text("utf-8").splitlines())


def test_every_reference_run_has_a_card():
    """Take the recipes with a score in their first lines as the reference runs."""
    recipes = [*(ROOT / "recipes").glob("*/*_prompt_tuning.yaml")]
    run = [path.stem for path in recipes if "Score: not measured" not in path.read_text(encoding="utf-8")]
    assert {path.stem for path in CARDS} == {*run, "distillation", "quickstart"}
