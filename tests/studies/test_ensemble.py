"""Several prompts of one model: each writes the same as by itself, and together the same as a mean by hand."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.architectures import row_logits
from helpers.models import forbid_model_loading
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from prompt_tuning.encoding.batching import source_length
from prompt_tuning.encoding.decoding import decode
from prompt_tuning.errors import AdapterError, DataError, PromptTuningError, RecipeError
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.evaluate import evaluate, trainer_for
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.studies.ensemble import (
    MeanOverAdapters,
    ensemble,
    ensemble_text,
    load_adapters,
    vote,
    write_together,
)

LENGTHS = (3, 7, 1)
TOKENS = 8  # A row gets at most so many.


def save_adapter(model_folder, folder, length, seed):
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    prompt = torch.randn(length, 32, generator=torch.Generator().manual_seed(seed))
    add_soft_prompt(base, prompt_config(base, length), prompt).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def adapters(model_folders, tmp_path):
    """Save random prompts of different lengths."""
    return [save_adapter(model_folders["llama"], tmp_path / f"adapter-{length}", length, length) for length in LENGTHS]


@pytest.fixture
def recipe(recipe_file):
    return lambda *overrides, **changes: load_recipe(recipe_file(max_target_tokens=TOKENS, **changes), list(overrides))


def read(folder):
    lines = (folder / "predictions" / "test.jsonl").read_text().splitlines()
    return json.loads((folder / "results.json").read_text()), [json.loads(line) for line in lines]


def together_by_hand(base, prompts, row):
    """Choose ids one by one from the base model without any cache."""
    ids = list(row)
    while len(ids) < len(row) + TOKENS and ids[-1] != base.config.eos_token_id:
        log_probabilities = [row_logits(base, prompt, ids)[-1].log_softmax(-1) for prompt in prompts]
        ids.append(torch.stack(log_probabilities).mean(0).argmax().item())
    return ids[len(row) :]


def test_logits_write_the_same_as_a_mean_by_hand(adapters, recipe, model_folders):
    written = recipe()
    folder = ensemble(recipe(), adapters, "logits")
    prepared = prepare(written, ("test",))
    base = AutoModelForCausalLM.from_pretrained(model_folders["llama"]).requires_grad_(False)
    model = load_adapters(prepared, adapters)
    prompts = [model.prompt_encoder[name].embedding.weight for name in model.peft_config]
    assert [len(prompt) for prompt in prompts] == [*LENGTHS]
    expected = []
    for row in prepared.encoded["test"]:
        source = row["input_ids"][: source_length(row["labels"])]
        ids = together_by_hand(base, prompts, source)
        expected += decode([ids], prepared.tokenizer, prepared.template.stop)
    results, rows = read(folder)
    assert [row["ensemble"] for row in rows] == expected
    for number in range(1, 4):  # No single adapter would have passed.
        assert [row[f"adapter_{number}"] for row in rows] != expected
    assert results["combine"] == "logits" and set(results["ensemble"]) == {"exact_match", "f1"}


def test_a_vote_is_among_the_texts_and_scores_that_each_adapter_has_by_itself(adapters, recipe, tmp_path):
    results, rows = read(ensemble(recipe(), adapters, output_dir=tmp_path / "together"))
    texts = []
    for number, (folder, length) in enumerate(zip(adapters, LENGTHS, strict=True), 1):
        alone, alone_rows = read(evaluate(recipe(), folder, output_dir=tmp_path / f"alone-{number}"))
        texts.append([row["soft_prompt"] for row in alone_rows])
        assert [row[f"adapter_{number}"] for row in rows] == texts[-1]
        assert (
            results["adapters"][f"adapter_{number}"]
            == {"folder": folder, "virtual_tokens": length} | (alone["soft_prompt"])
        )
    assert len({tuple(choices) for choices in texts}) == 3
    assert [row["ensemble"] for row in rows] == [vote(choices)[0] for choices in zip(*texts, strict=True)]
    assert results["rows"] == 9 and results["combine"] == "vote"


def test_equal_prompts_agree_and_write_together_the_text_of_one(model_folders, recipe, tmp_path):
    same = [save_adapter(model_folders["llama"], tmp_path / name, 4, 5) for name in ("one", "two")]
    for combine in ("vote", "logits"):
        results, rows = read(ensemble(recipe(), same, combine))
        assert all(row["ensemble"] == row["adapter_1"] == row["adapter_2"] for row in rows)
        assert results["all_agree"] == 100 and results["mean_votes"] == 2
        assert results["ensemble"].items() <= results["adapters"]["adapter_2"].items()


def test_cost_counts_each_row_and_each_prompt(adapters, recipe):
    folder = ensemble(recipe(), adapters)
    cost = read(folder)[0]["cost"]
    assert cost["rows"] == {"one_adapter": 9, "ensemble": 27}
    assert cost["virtual_tokens"] == {"one_adapter": 3, "ensemble": 11}
    assert cost["seconds"]["one_adapter"] > 0 and cost["seconds"]["ensemble"] > 0
    text = ensemble_text(folder)
    assert f"cost against {adapters[0]} alone: 27 rows for 9, 11 virtual tokens for 3" in text
    assert text.count("\n") == 9 and "together, by vote" in text and "all 3 adapters wrote the same" in text


@pytest.mark.parametrize("combine", ["vote", "logits"])
def test_a_row_gets_the_same_text_by_itself_and_in_any_batch(adapters, recipe, combine):
    written = []
    for overrides in (["--per_device_eval_batch_size=1"], ["--per_device_eval_batch_tokens=500"], []):
        prepared = prepare(recipe(*overrides), ("test",))
        trainer = trainer_for(load_adapters(prepared, adapters), prepared)
        names = list(trainer.model.peft_config)
        processors = [MeanOverAdapters(3)] if combine == "logits" else []
        written.append(write_together(trainer, prepared.encoded["test"], names, processors))
    assert written[0] == written[1] == written[2]
    alike = [len(set(texts)) == 1 for texts in written[0]]
    assert all(alike) if combine == "logits" else not any(alike)


@pytest.mark.parametrize(
    ("overrides", "rows", "tokens"),
    [
        (["--per_device_eval_batch_tokens=900"], 128, 900),
        (["--per_device_eval_batch_tokens=900", "--generation_num_beams=2"], 128, 450),
        (["--per_device_eval_batch_size=7"], 6, 8192),
    ],
)
def test_copies_count_in_the_size_of_an_evaluation_batch(adapters, recipe, monkeypatch, overrides, rows, tokens):
    prepared = prepare(recipe(*overrides), ("test",))
    trainer = trainer_for(load_adapters(prepared, adapters), prepared)
    shapes = []
    generate = trainer.model.generate

    def noted(**kwargs):
        shapes.append(kwargs["input_ids"].shape)
        return generate(**kwargs)

    monkeypatch.setattr(trainer.model, "generate", noted)
    write_together(trainer, prepared.encoded["test"], list(trainer.model.peft_config))
    assert sum(count for count, _ in shapes) == 27 and max(count for count, _ in shapes) > 3
    assert all(count <= rows and count * (max(LENGTHS) + width + TOKENS) <= tokens for count, width in shapes)


def test_copies_of_a_row_share_the_mean_of_their_log_probabilities():
    scores = torch.randn(6, 11)
    averaged = MeanOverAdapters(3)(None, scores)
    for row in range(2):
        three = scores[3 * row : 3 * row + 3]
        by_hand = sum(logits.exp().div(logits.exp().sum()).log() for logits in three) / 3
        for copy in range(3):
            assert torch.allclose(averaged[3 * row + copy], by_hand, atol=1e-6)
    with pytest.raises(AdapterError, match="use --combine vote"):
        MeanOverAdapters(4)(None, scores)


@pytest.mark.parametrize(
    ("texts", "winner", "votes"),
    [
        (["Oslo", "Lima", "Lima"], "Lima", 2),
        (["Oslo", "Lima", "the lima.", "oslo"], "Oslo", 2),  # The adapter named first wins a tie.
        (["Riga", "Oslo", "Lima", "Lima", "Oslo"], "Oslo", 2),
        (["Oslo", "Lima", "Riga"], "Oslo", 1),
        (["", "Lima", ""], "", 2),
    ],
)
def test_the_most_frequent_text_wins_and_the_first_named_breaks_ties(texts, winner, votes):
    assert vote(texts) == (winner, votes)


def test_votes_are_counted_by_the_rules_of_the_language():
    assert vote(["Oslo", "the place", "place"], "de") == ("Oslo", 1)  # Only English loses its articles.
    for english in ("en", "en-US", "eng_Latn"):
        assert vote(["Oslo", "the place", "place"], english) == ("the place", 2)


def test_adapters_of_another_kind_model_or_number_are_refused_at_once_before_the_model_loads(
    adapters, recipe, model_folders, tmp_path, monkeypatch
):
    for config, name in (
        (LoraConfig(task_type="CAUSAL_LM"), "lora"),
        (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "prefix"),
    ):
        base = AutoModelForCausalLM.from_pretrained(model_folders["llama"])
        get_peft_model(base, config).save_pretrained(tmp_path / name)
    other = tmp_path / "other" / "adapter_config.json"
    shutil.copytree(adapters[1], other.parent)
    other.write_text(json.dumps(json.loads(other.read_text()) | {"base_model_name_or_path": "another/model"}))
    wrong = [str(tmp_path / name) for name in ("none", "lora", "prefix", "other")]
    forbid_model_loading(monkeypatch)
    with pytest.raises(AdapterError) as caught:
        ensemble(recipe(), [adapters[0], *wrong, f"{tmp_path}/lora/../{Path(adapters[0]).name}"])
    lines = str(caught.value).splitlines()
    for line, message in zip(
        lines,
        ["none: no adapter_config.json there", "a LORA adapter", "a PREFIX_TUNING adapter", "was trained on another",
         "is named twice and would vote twice"],
        strict=True,
    ):  # fmt: skip
        assert message in line
    with pytest.raises(AdapterError, match="an ensemble needs at least two, found 1"):
        ensemble(recipe(), adapters[:1])
    with pytest.raises(RecipeError, match="--combine mean: expected vote or logits"):
        ensemble(recipe(), adapters, "mean")
    with pytest.raises(DataError, match=r"split dev: there is no such split\. Name one of train, validation, test"):
        ensemble(recipe(), adapters, split="dev")
    with pytest.raises(RecipeError, match="--combine logits is greedy"):
        ensemble(recipe("--generation_num_beams=2"), adapters, "logits")
    with pytest.raises(AdapterError, match="an encoder-decoder model, and an ensemble needs a causal model"):
        ensemble(recipe(model_name_or_path=model_folders["t5"]), adapters)


def test_beams_vote_with_each_adapter_searching_by_itself(adapters, recipe, tmp_path):
    beams = "--generation_num_beams=3"
    _, rows = read(ensemble(recipe(beams), adapters[:2]))
    _, alone = read(evaluate(recipe(beams), adapters[1], output_dir=tmp_path / "alone"))
    assert [row["adapter_2"] for row in rows] == [row["soft_prompt"] for row in alone]


def test_beyond_a_sliding_window_adapters_vote_but_share_no_batch(recipe, tokenizer, tmp_path):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, sliding_window=16, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    tokenizer.save_pretrained(tmp_path / "mistral")
    two = [save_adapter(tmp_path / "mistral", tmp_path / f"adapter-{length}", length, length) for length in (2, 5)]
    windowed = recipe(model_name_or_path=tmp_path / "mistral")
    _, rows = read(ensemble(windowed, two, output_dir=tmp_path / "together"))
    _, alone = read(evaluate(windowed, two[1], output_dir=tmp_path / "alone"))
    assert [row["adapter_2"] for row in rows] == [row["soft_prompt"] for row in alone]
    with pytest.raises(PromptTuningError, match="reach beyond this model's sliding window"):
        ensemble(windowed, two, "logits", output_dir=tmp_path / "failed")
    assert not (tmp_path / "failed").exists()
