"""rank: its likelihoods, its halving, how it resumes, and the recipe that it writes."""

import json
import re
from itertools import product

import pytest
import torch
from datasets import Dataset
from helpers.architectures import row_logits
from helpers.models import forbid_model_loading, tiny_llama, tiny_t5
from helpers.rows import question_rows, write_jsonl
from transformers import AutoModelForCausalLM
from transformers.utils.logging import enable_progress_bar

from prompt_tuning import Encoder, PromptTuningTrainer, Template, encode
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.cli.main import main
from prompt_tuning.encoding.batching import source_length
from prompt_tuning.errors import ModelError, RecipeError
from prompt_tuning.models.initialization import initial_text, saved_prompt
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.studies import rank as rank_module
from prompt_tuning.studies import rank_likelihoods
from prompt_tuning.studies.rank_likelihoods import halving_plan, log_likelihoods_without_end

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def write_templates(path, words):
    """Write a file of templates that differ in a word."""
    path.write_text(
        "".join(
            f"{word}:\n  source: '{word}. {{{{ context }}}} {{{{ question }}}}'\n"
            "  target: '{{ answers.text[0] }}'\n"
            for word in words
        )
    )
    return path


@pytest.fixture
def templates(tmp_path):
    return write_templates(tmp_path / "mine.yaml", WORDS)


def replace_likelihoods(monkeypatch, function):
    monkeypatch.setattr(rank_likelihoods, "log_likelihoods_without_end", function)


def interrupt(*args):
    raise KeyboardInterrupt


@pytest.fixture
def scored(monkeypatch):
    """Replace likelihoods by values that depend on the template's word, and return the scored rows."""
    rows = []

    def likelihoods(model, places):
        words = [(encoded[number]["source"].split(".")[0], number) for encoded, number in places]
        rows.extend(words)
        return [-1.0 - abs(WORDS.index(word) - 4) + 0.1 * (number % 3) for word, number in words]

    replace_likelihoods(monkeypatch, likelihoods)
    return rows


def ranked(recipe, tmp_path, *flags):
    return main(["rank", str(recipe), "--output_dir", str(tmp_path / "rank"), *map(str, flags)])


def rank_facts(tmp_path):
    return json.loads((tmp_path / "rank" / "rank.json").read_text())


def test_the_likelihood_of_a_target_leaves_out_its_end_and_is_the_same_in_any_batch(tokenizer):
    rows = Dataset.from_list(question_rows(5))
    base = tiny_llama(len(tokenizer))
    names = ("plain", "chat", "instruction_last", "few_shot")
    encoded = [encode(rows, Encoder(Template.load(f"question_answering/{name}"), tokenizer))[0] for name in names]
    places = [(rows_of_template, number) for number, rows_of_template in product(range(5), encoded)]
    for score, (rows_of_template, number) in zip(log_likelihoods_without_end(base, places), places, strict=True):
        ids = rows_of_template[number]["input_ids"][:-1]
        start = source_length(rows_of_template[number]["labels"])
        assert rows_of_template[number]["input_ids"][-1] == tokenizer.eos_token_id
        logits = row_logits(base, base.get_input_embeddings().weight[:0], ids)[start - 1 : -1].log_softmax(-1)
        expected = logits[torch.arange(len(ids) - start), ids[start:]].sum().item()
        assert score == pytest.approx(expected, abs=1e-4)


def test_the_likelihood_of_an_encoder_decoder_leaves_out_the_end_too(tokenizer):
    base = tiny_t5(len(tokenizer))
    encoded, _ = encode(
        Dataset.from_list(question_rows(3)), Encoder(Template.load("question_answering/t5"), tokenizer, True)
    )
    scores = log_likelihoods_without_end(base, [(encoded, number) for number in range(3)])
    for score, row in zip(scores, encoded, strict=True):
        labels = row["labels"][:-1]
        logits = base(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([labels])).logits[0]
        assert score == pytest.approx(logits.log_softmax(-1)[torch.arange(len(labels)), labels].sum().item(), abs=1e-4)


def test_a_plan_halves_candidates_and_doubles_rows_until_the_finalists_have_all():
    assert halving_plan(19, 75, 3) == [(19, 10), (10, 19), (5, 38), (3, 75)]
    assert halving_plan(8, 12, 2) == [(8, 8), (4, 8), (2, 12)]
    assert halving_plan(2, 40, 3) == [(2, 40)]
    assert sum(kept * reach for kept, reach in halving_plan(64, 640, 1)) < 64 * 640 / 8


def test_bad_candidates_stop_early_and_the_best_one_is_kept(recipe_file, templates, scored, tmp_path, capsys):
    write_jsonl(tmp_path / "validation.jsonl", question_rows(32, 3))
    assert ranked(recipe_file(), tmp_path, "--templates", templates, "--finalists", 1) == 0
    assert len(scored) == len(set(scored)) == 8 * 8 + 4 * 0 + 2 * 8 + 1 * 16 < 8 * 32
    facts = rank_facts(tmp_path)
    assert facts["halving"] == [[8, 8], [4, 8], [2, 16], [1, 32]] and facts["winner"] == f"{templates}:five"
    rows = {name.split(":")[-1]: candidate["rows"] for name, candidate in facts["candidates"].items()}
    assert rows["five"] == 32 and rows["one"] == 8 and next(iter(rows)) == "five"
    against = facts["candidates"][f"{templates}:one"]["log_likelihood"]["against_winner"]
    assert against["difference"] == pytest.approx(-4) and against["p"] < 0.01  # Both have the same eight rows.
    table = capsys.readouterr().out.replace("`", "")
    assert re.search(rf"(?m)^{templates}:five +32 ", table) and "stopped, though" not in table
    assert f"| `{templates}:five`" in (tmp_path / "rank" / "rank.md").read_text()
    assert not (tmp_path / "run").exists()  # The recipe's output_dir, for a training.


def test_a_stopped_rank_resumes_and_a_finished_one_runs_nothing(recipe_file, tmp_path, monkeypatch, capsys):
    templates = write_templates(tmp_path / "mine.yaml", WORDS[:3])
    flags = ["--templates", templates, "--num_demonstrations", 0, 1, "--seeds", 1, 2, "--finalists", 2]
    recipe = recipe_file()
    with monkeypatch.context() as patched:
        patched.setattr(PromptTuningTrainer, "predict_texts", interrupt)
        assert ranked(recipe, tmp_path, *flags) == 130
    lines = (tmp_path / "rank" / "likelihoods.jsonl").read_text()
    assert lines and not (tmp_path / "rank" / "rank.json").exists()
    replace_likelihoods(monkeypatch, None)
    assert ranked(recipe, tmp_path, *flags) == 0
    facts = rank_facts(tmp_path)
    assert len(facts["candidates"]) == 3 * 3 and (tmp_path / "rank" / "likelihoods.jsonl").read_text() == lines
    forbid_model_loading(monkeypatch)
    assert ranked(recipe, tmp_path, *flags) == 0 and rank_facts(tmp_path) == facts
    unread = ["--test_file", tmp_path / "train.jsonl", "--preprocessing_num_workers", 1]
    of_training = ["--max_steps", 9, "--num_virtual_tokens", 3]
    assert ranked(recipe, tmp_path, *flags, *of_training, *unread) == 0  # No score depends on these settings.
    capsys.readouterr()
    shown = templates.read_text()
    templates.write_text(shown.replace("source: 'three", "stop: ['a']\n  source: 'three"))
    assert ranked(recipe, tmp_path, *flags) == 2
    assert "other settings or rows (candidates)" in capsys.readouterr().err
    templates.write_text(shown)
    assert ranked(recipe, tmp_path, *flags[:-1], 3) == 2
    assert "holds a ranking with other settings or rows (finalists)" in capsys.readouterr().err
    write_jsonl(tmp_path / "validation.jsonl", question_rows(6, 2))
    assert ranked(recipe, tmp_path, *flags) == 2
    assert "other settings or rows (candidates)" in capsys.readouterr().err


def test_a_message_with_names_of_a_stranger_is_bounded(recipe_file, tmp_path, capsys):
    (tmp_path / "rank").mkdir()
    names = dict.fromkeys(["long" * 100_000, *(f"name{number}" for number in range(100_000))], 1)
    (tmp_path / "rank" / "settings.json").write_text(json.dumps(names))
    assert ranked(recipe_file(), tmp_path, "--templates", "question_answering/plain") == 2
    error = capsys.readouterr().err
    assert len(error) < 3000 and "characters left out" in error
    assert error.endswith("Remove it, or name another --output_dir.\n")


@pytest.mark.parametrize("damaged", ["{", "[]", "null", None])
def test_scores_without_settings_are_refused(damaged, recipe_file, tmp_path, capsys):
    settings = tmp_path / "rank" / "settings.json"
    settings.parent.mkdir()
    (tmp_path / "rank" / "likelihoods.jsonl").write_text("")
    if damaged:
        settings.write_text(damaged)
    assert ranked(recipe_file(), tmp_path, "--templates", "question_answering/plain") == 2
    assert "so the settings of the scores beside it are not known. Remove the folder" in capsys.readouterr().err


def test_a_rank_that_fails_before_a_score_leaves_nothing(recipe_file, tmp_path, monkeypatch):
    def fail(*args):
        raise ModelError("the weights are damaged")

    flags = ("--templates", "question_answering/plain")
    monkeypatch.setattr(rank_module, "load_base_model", fail)
    assert ranked(recipe_file(), tmp_path, *flags) == 1 and not (tmp_path / "rank").exists()
    settings = tmp_path / "rank" / "settings.json"
    settings.parent.mkdir()
    settings.write_text("[]")  # It is a file of somebody else.
    assert ranked(recipe_file(), tmp_path, *flags) == 2 and settings.read_text() == "[]"


def test_a_rank_stopped_among_the_likelihoods_loses_only_the_last_rows(recipe_file, tmp_path, monkeypatch, capsys):
    templates = write_templates(tmp_path / "mine.yaml", WORDS[:4])
    rows = write_jsonl(tmp_path / "many.jsonl", question_rows(40, 2))
    flags = ["--templates", templates, "--num_demonstrations", 0, 1, "--validation_file", rows, "--disable_tqdm", "no"]
    recipe = recipe_file()
    asked = []

    def likelihoods(model, places):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(places))
        return [-1.0 - number for number in range(len(places))]

    replace_likelihoods(monkeypatch, likelihoods)
    enable_progress_bar()  # `predict` turns it off.
    assert ranked(recipe, tmp_path, *flags) == 130
    kept = (tmp_path / "rank" / "likelihoods.jsonl").read_text().splitlines()
    assert len(kept) == sum(asked)
    assert asked == [10 * 4, 10, 10]  # Zero-shot candidates are read together.
    asked.append(None)
    assert ranked(recipe, tmp_path, *flags) == 0
    facts = rank_facts(tmp_path)
    read = sum(candidate["rows"] for candidate in facts["candidates"].values())
    assert sum(asked[:3]) + sum(asked[4:]) == read  # No row was scored twice.
    assert "likelihood: 100%" in capsys.readouterr().err


def test_other_targets_are_left_out_and_missing_demonstrations_are_counted(recipe_file, tmp_path, capsys):
    source = "source: '{{ context }} {{ question }}'\nreferences: answers.text\n"
    (tmp_path / "first.yaml").write_text(source + "target: '{{ answers.text[0] }}'\n")
    (tmp_path / "longer.yaml").write_text(source + "target: 'The answer is {{ answers.text[0] }}'\n")
    files = [str(tmp_path / f"{name}.yaml") for name in ("first", "longer")]
    recipe = recipe_file(max_source_tokens=60)
    assert ranked(recipe, tmp_path, "--templates", *files, "--num_demonstrations", "0", "2", "--train_file",
                  tmp_path / "train.jsonl") == 0  # fmt: skip
    text = capsys.readouterr().out.replace("`", "")
    assert f"left out: {files[1]}: it has other targets than {files[0]}" in text
    shown = rank_facts(tmp_path)["candidates"][f"{files[0]}, 2 shown, seed 42"]
    assert 0 < shown["lacking_rows"] <= 6 and f"2 shown, seed 42: {shown['lacking_rows']} rows show fewer" in text
    assert "p of at most 16 rows by their signs" in text


def test_likelihoods_are_computed_in_bf16_if_predictions_are(recipe_file, templates, tmp_path, monkeypatch):
    numbers = []

    def likelihoods(model, places):
        numbers.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return [-1.0] * len(places)

    replace_likelihoods(monkeypatch, likelihoods)
    monkeypatch.setattr(PromptTuningTrainer, "predict_texts", lambda *_: ["Turin"] * 6)
    assert ranked(recipe_file(bf16="true"), tmp_path, "--templates", f"{templates}:one") == 0
    assert set(numbers) == {torch.bfloat16}


def test_a_prediction_with_a_line_separator_is_read_back(recipe_file, templates, tmp_path, monkeypatch):
    monkeypatch.setattr(PromptTuningTrainer, "predict_texts", lambda *_: ["one\u2028two"] * 6)
    for _ in range(2):
        assert ranked(recipe_file(), tmp_path, "--templates", f"{templates}:one") == 0


def test_equal_candidates_are_not_significantly_different(recipe_file, tmp_path, capsys):
    for name in ("first", "second"):
        (tmp_path / f"{name}.yaml").write_text(
            "source: '{{ context }} {{ question }}'\ntarget: '{{ answers.text[0] }}'\n"
        )
    assert ranked(recipe_file(), tmp_path, "--templates", tmp_path / "first.yaml", tmp_path / "second.yaml") == 0
    second = rank_facts(tmp_path)["candidates"][str(tmp_path / "second.yaml")]
    assert second["f1"]["p"] == 1 == second["log_likelihood"]["against_winner"]["p"]
    text = capsys.readouterr().out.replace("`", "")
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    assert f"winner: {first}\nnot significantly different from it by f1: {second};" in text
    assert "1.000, not significant\n" in text and "to start a soft prompt" not in text


def test_all_shipped_templates_are_ranked_by_default_and_the_winner_runs(recipe_file, tmp_path, capsys):
    recipe = recipe_file(max_source_tokens=150, max_target_tokens=6)
    assert (
        ranked(recipe, tmp_path, "--num_demonstrations", 2, "--rows", 5, "--demonstration_selection", "balanced") == 0
    )
    facts = rank_facts(tmp_path)
    assert facts["rows"] == 5 and len(facts["candidates"]) + len(facts["left_out"]) == 19
    assert "it is answered by choosing" in facts["left_out"]["question_answering/yes_no"]
    (unfit,) = (reason for name, reason in facts["left_out"].items() if "few_shot_chat" in name)
    assert "max_source_tokens is 150" in unfit and unfit in capsys.readouterr().out.replace("`", "")
    winner = tmp_path / "rank" / "winner.yaml"
    loaded = load_recipe(winner)
    assert f"{loaded.prompt.template}, 2 shown, seed 42" == facts["winner"]
    assert (loaded.prompt.num_demonstrations, loaded.prompt.demonstration_selection) == (2, "balanced")
    arguments = ["--split", "validation", "--max_eval_samples", "5", "--output_dir", str(tmp_path / "again")]
    assert main(["evaluate", str(winner), *arguments]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())["hard_prompt"]
    assert again["f1"] == pytest.approx(facts["candidates"][facts["winner"]]["f1"]["score"], abs=0.01)
    assert main(["train", str(winner), "--max_steps", "1", "--output_dir", str(tmp_path / "trained")]) == 0


def test_translations_are_tested_by_their_corpus_metric(recipe_file, tmp_path, monkeypatch):
    english = [f"the cat sat on the old mat by the door{' and by the wall' * n}" for n in range(9)]
    pairs = [{"translation": {"fr": f"Le chat {n} dort.", "en": text}} for n, text in enumerate(english)]
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", pairs)
    recipe = recipe_file(task="translation", source_lang="fr", target_lang="en", template="translation/plain")
    names = ["translation/plain", "translation/instruction"]
    noisy = [text.replace("old mat by", "new rug at") for text in english]

    def predict(trainer, rows):
        return english if rows[0]["source"].startswith("Translate") else noisy

    monkeypatch.setattr(PromptTuningTrainer, "predict_texts", predict)
    assert ranked(recipe, tmp_path, "--templates", *names) == 0
    facts = rank_facts(tmp_path)
    assert facts["metric"] == "bleu" and facts["test"] == "sacreBLEU's paired bootstrap"
    best, other = (facts["candidates"][name]["bleu"] for name in reversed(names))
    assert facts["winner"] == names[1] and "p" not in best and other["p"] < 0.05 and other["high"] < best["low"]
    assert main(["rank", str(recipe), "--output_dir", str(tmp_path / "one"), "--templates", names[0]]) == 0


def test_what_cannot_be_ranked_is_refused_before_a_model_loads(recipe_file, tmp_path, monkeypatch, capsys):
    forbid_model_loading(monkeypatch)
    assert ranked(recipe_file(), tmp_path, "--templates", "summarization") == 2
    assert "no template could be ranked\nerror: template summarization/plain needs" in capsys.readouterr().err
    assert ranked(recipe_file(), tmp_path, "--templates", "nothing") == 2
    assert "template nothing: not a shipped template" in capsys.readouterr().err
    (tmp_path / "theirs.yaml").write_text(
        "dataset: squad\nsubset: null\ntemplates:\n  1: !Template\n    name: One\n    jinja: '{{ question }}'\n"
    )
    assert ranked(recipe_file(), tmp_path, "--templates", tmp_path / "theirs.yaml") == 2
    errors = capsys.readouterr().err
    assert "no template could be ranked\nerror: template" in errors and "|||" in errors
    assert ranked(recipe_file(metrics="exact_match"), tmp_path) == 2
    assert "metrics give exact_match, and rank goes by f1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ranked(recipe_file(), tmp_path, "--num_demonstrations", "-1")


def test_zero_demonstrations_can_be_ranked_with_any_recipe(recipe_file, tmp_path):
    recipe = recipe_file(num_demonstrations=2, demonstration_selection="balanced", score_choices=False)
    assert ranked(recipe, tmp_path, "--num_demonstrations", 0, "--rows", 2, "--finalists", 1) == 0
    assert not any("answered by choosing" in reason for reason in rank_facts(tmp_path)["left_out"].values())


def opening(template, tokenizer, languages=None):
    return Encoder(template, tokenizer, languages=languages).texts.common_prefix()


def test_the_common_prefix_of_an_encoder_is_where_every_row_begins(tokenizer):
    target = "{{ answers.text[0] }}"
    assert opening(Template("Read. {{ context }}", target), tokenizer) == "Read."
    assert opening(Template("{{ context }}: answer", target), tokenizer) == ""
    assert opening(Template("A{% if context %} b{% endif %}", target), tokenizer) == "A"
    languages = {"source_language": "French"}
    assert opening(Template("From {{ source_language }}: {{ text }}", "x"), tokenizer, languages) == "From French:"
    assert opening(Template("{{ text }}", "x", system="For {{ reader }}.", demonstrations=()), tokenizer) == "For"
    in_filter = Template("{% filter trim %}Answer. {{ context }} {{ question }}{% endfilter %}", target)
    assert opening(in_filter, tokenizer) == "Answer."
    rows = question_rows(6)
    for name in ("few_shot", "few_shot_chat", "instruction", "chat_long"):
        template = Template.load(f"question_answering/{name}")
        encoder = Encoder(template, tokenizer)
        text = opening(template, tokenizer)
        sources = [encoder.row(row)["source"] for row in rows]
        assert text and all(source.startswith(text) for source in sources)
        assert not any(
            source[len(text) :].lstrip().startswith(sources[0][len(text) :][:30]) for source in sources[1:2]
        )
    assert text.startswith("<|system|>You are a careful reader.") and text.endswith("<eos><|user|>Passage:\n")


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_prompt_starts_from_the_template_and_the_rows_lose_its_demonstrations(
    method, recipe_file, tokenizer, tmp_path, capsys
):
    recipe = recipe_file(init="template", num_demonstrations=2, num_virtual_tokens=None, method=method)
    assert main(["train", str(recipe), "--max_steps", "1", "--learning_rate", "0"]) == 0
    run = tmp_path / "run"
    config = json.loads((run / "adapter_config.json").read_text())
    rows = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert all(row["source"].count("Answer:") == 1 for row in rows)
    assert "demonstrations" not in (run / "template.yaml").read_text()
    prepared = prepare(load_recipe(recipe), ("train",))
    assert prepared.reports["train"].rows == 22 and config["num_virtual_tokens"] == len(prepared.init_ids)
    assert tokenizer.decode(prepared.init_ids).count("Answer:") == 2
    if method == "prompt_tuning":
        embeddings = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"]).get_input_embeddings()
        assert torch.equal(saved_prompt(run), embeddings.weight[prepared.init_ids])
    capsys.readouterr()
    arguments = ["--adapter", str(run), "--input", str(tmp_path / "test.jsonl")]
    assert main(["predict", *arguments]) == 0
    lines = capsys.readouterr().out.replace("`", "").splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == [row["soft_prompt"] for row in rows]
    again = ["--adapter", str(run), "--output_dir", str(tmp_path / "again")]
    assert main(["evaluate", str(run / "recipe.yaml"), *again]) == 0
    written = (tmp_path / "again" / "predictions" / "test.jsonl").read_text().splitlines()
    assert [json.loads(line)["soft_prompt"] for line in written] == [row["soft_prompt"] for row in rows]


def test_init_template_refuses_templates_without_a_common_prefix(recipe_file, tokenizer, tmp_path, capsys):
    plain = Encoder(Template.load("question_answering/plain"), tokenizer)
    with pytest.raises(RecipeError, match=r"begins with a column.*init: text or demonstrations"):
        initial_text(PromptArguments(init="template"), plain, Dataset.from_list(question_rows(2)), 0)
    recipe = str(recipe_file(init="template", num_virtual_tokens=None))
    assert main(["check", recipe]) == 2
    assert "begins with a column" in capsys.readouterr().err
    bm25 = ["--num_demonstrations", "1", "--demonstration_selection", "bm25"]
    assert main(["train", recipe, *bm25]) == 2
    assert "init template: bm25 chooses other demonstrations for each row" in capsys.readouterr().err
