"""inspect describes prompts whose tokens and norms are known by construction."""

import json
import shutil
import sys

import pytest
import torch
from helpers.models import forbid_model_loading, tiny_llama
from peft import (
    LoraConfig,
    PeftModelForSeq2SeqLM,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.errors import AdapterError, ModelError, PromptTuningError
from prompt_tuning.models.encoder_decoder import EncoderDecoderPromptModel
from prompt_tuning.models.encoder_decoder_prefix import EncoderDecoderPrefixConfig
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config
from prompt_tuning.studies.inspect import inspect, inspection_text, token_text

IDS = [1, 70, 300, 5]
PNG = b"\x89PNG\r\n"


@pytest.fixture
def base(model_folders):
    return AutoModelForCausalLM.from_pretrained(model_folders["llama"])


@pytest.fixture
def adapter(base, tmp_path):
    """Save a prompt of the embeddings of four tokens, the third one doubled."""
    prompt = base.get_input_embeddings().weight[IDS].detach().clone()
    prompt[2] *= 2
    add_soft_prompt(base, prompt_config(base, 4), prompt).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_prompt_of_token_embeddings_is_read_as_these_tokens(adapter, base, tokenizer, monkeypatch):
    forbid_model_loading(monkeypatch)  # One tensor of the file is enough.
    report = inspect(str(adapter), nearest=3)
    assert [token["nearest"][0]["id"] for token in report["tokens"]] == IDS
    assert [token["nearest"][0]["cosine"] for token in report["tokens"]] == [1, 1, 1, 1]
    vocabulary = base.get_input_embeddings().weight.detach()
    unit = torch.nn.functional.normalize(vocabulary)
    for token, id in zip(report["tokens"], IDS, strict=True):
        expected = (unit[id] @ unit.T).topk(3)
        assert [near["id"] for near in token["nearest"]] == expected.indices.tolist()
        assert [near["cosine"] for near in token["nearest"]] == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert report["tokens"][0]["nearest"][0]["token"] == "<eos>"
    assert report["tokens"][1]["nearest"][0]["token"] == token_text(tokenizer, 70, special=False)


def test_a_cpt_prompt_is_read_as_the_text_that_it_changes(base, tmp_path):
    model = add_soft_prompt(base, prompt_config(base, 4, PromptArguments(method="cpt"), IDS))
    with torch.no_grad():
        model.prompt_encoder["default"].delta_embedding.weight[2, 0] += 1  # PEFT bounds it.
    model.save_pretrained(tmp_path / "cpt")
    start = base.get_input_embeddings().weight[IDS].detach().clone()
    save_file({"initial_prompt": start}, tmp_path / "cpt" / "initial_prompt.safetensors")
    report = inspect(str(tmp_path / "cpt"))
    assert report["method"] == "CPT" and [token["nearest"][0]["id"] for token in report["tokens"]] == IDS
    bound = 0.1 * (32 / 2048) ** 0.5
    assert [token["moved"] for token in report["tokens"]] == pytest.approx([0, 0, bound, 0], abs=1e-4)


def test_norms_are_compared_with_those_of_the_vocabulary(adapter, base):
    report = inspect(str(adapter))
    norms = base.get_input_embeddings().weight.detach().norm(dim=1)
    expected = [norms[1], norms[70], 2 * norms[300], norms[5]]
    assert [token["norm"] for token in report["tokens"]] == pytest.approx([*map(float, expected)], abs=1e-4)
    assert report["tokens"][2]["norm_percentile"] == 100
    below = 100 * sum(norm < norms[70] for norm in norms).item() / len(norms)
    assert report["tokens"][1]["norm_percentile"] == pytest.approx(below, abs=0.06)
    assert report["vocabulary"]["size"] == len(norms)
    assert report["vocabulary"]["norm_mean"] == pytest.approx(norms.mean().item(), abs=1e-4)
    assert report["vocabulary"]["norm_95th"] == pytest.approx(norms.quantile(0.95).item(), abs=1e-4)


def test_the_distance_from_the_start_is_reported_if_the_start_was_saved(adapter, base):
    before = inspect(str(adapter))
    assert before["initial_prompt"] is None and "moved" not in before["tokens"][0]
    assert f"no initial_prompt.safetensors in {adapter}, so how far the prompt moved is unknown" in inspection_text(
        before
    )
    start = base.get_input_embeddings().weight[IDS].detach().clone()
    start[0, 0] += 3
    save_file({"initial_prompt": start}, adapter / "initial_prompt.safetensors")
    after = inspect(str(adapter))
    doubled = start[2].norm().item()
    assert [token["moved"] for token in after["tokens"]] == pytest.approx([3, 0, doubled, 0], abs=1e-4)
    assert f"moved from {adapter}/initial_prompt.safetensors by {(3 + doubled) / 4:.3f}" in inspection_text(after)
    save_file({"initial_prompt": start[:2].clone()}, adapter / "initial_prompt.safetensors")
    with pytest.raises(AdapterError, match=r"is \[2, 32\], the trained prompt \[4, 32\]; it belongs to another run"):
        inspect(str(adapter))


def test_similarity_is_the_cosine_between_virtual_tokens(adapter, base):
    similarity = torch.tensor(inspect(str(adapter))["similarity"])
    vectors = base.get_input_embeddings().weight[IDS].detach()
    expected = torch.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    assert torch.allclose(similarity, expected, atol=1e-4)


def test_numbers_and_picture_are_written_beside_the_adapter_or_to_output(adapter, tmp_path):
    report = inspect(str(adapter), output=str(tmp_path / "out"))
    assert not (adapter / "inspection.json").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"inspection.json", "inspection.png"}
    assert json.loads((tmp_path / "out" / "inspection.json").read_text()) == report
    assert (tmp_path / "out" / "inspection.png").read_bytes().startswith(PNG)
    inspect(str(adapter))
    assert (adapter / "inspection.json").is_file() and (adapter / "inspection.png").is_file()


def test_the_table_has_a_line_for_each_virtual_token_and_a_caution(adapter):
    text = inspection_text(inspect(str(adapter), nearest=2))
    lines = [line for line in text.splitlines() if line.split()[:1] in [[number] for number in "0123"]]
    assert len(lines) == 4 and "<eos> 1.00, " in lines[0]
    assert "do not explain what the prompt does" in text
    assert "Khashabi et al. 2022" in text and "Bailey et al. 2023" in text


@pytest.fixture
def prefix(base, tmp_path):
    """Save a prefix: keys of layer 1 have norm 5, all others 2; the two virtual tokens have opposite values."""
    model = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    weight = torch.zeros(2, 2, 2, 16)
    weight[..., 0] = 2
    weight[:, 1, 0, 0] = 5
    weight[1, :, 1] *= -1
    model.prompt_encoder["default"].embedding.weight.data = weight.flatten(1)
    model.save_pretrained(tmp_path / "prefix")
    return tmp_path / "prefix", model


def test_a_prefix_has_norms_by_layer_and_no_nearest_tokens(prefix, monkeypatch):
    forbid_model_loading(monkeypatch)
    folder, model = prefix
    report = inspect(str(folder))
    assert [layer["key_norms"] for layer in report["layers"]] == [[2, 2], [5, 5]]
    assert [layer["value_norms"] for layer in report["layers"]] == [[2, 2], [2, 2]]
    cache = model.get_prompt(batch_size=1)  # A layer of PEFT's cache has [1, heads, P, D].
    for layer, kept in zip(report["layers"], cache.layers, strict=True):
        for name, states in (("key_norms", kept.keys), ("value_norms", kept.values)):
            assert layer[name] == pytest.approx(states[0].transpose(0, 1).flatten(1).norm(dim=1).tolist())
    assert report["similarity"] == [[1, 0], [0, 1]]  # Keys are alike, values opposite.
    assert report["tokens"] == [{"token": 0}, {"token": 1}]
    text = inspection_text(report)
    assert "nearest tokens do not exist for it" in text and "do not explain" in text
    assert (folder / "inspection.png").read_bytes().startswith(PNG)
    save_file({"initial_prompt": torch.zeros(2, 64)}, folder / "initial_prompt.safetensors")
    assert inspect(str(folder))["tokens"][1]["moved"] == pytest.approx((3 * 4 + 25) ** 0.5, abs=1e-4)


@pytest.mark.parametrize("length", [0, 2])
def test_trained_tokens_have_their_start_and_the_size_of_their_vectors(length, base, tmp_path):
    config = prompt_config(base, length, PromptArguments(layer_vectors=True), text_ids=IDS)
    start = base.get_input_embeddings().weight[IDS[:length]]
    model = add_soft_prompt(base, config, start, layer_scales=torch.tensor([3.0, 4.0]))
    tokens = model.prompt_encoder["default"].trained_tokens
    with torch.no_grad():
        tokens.text_embeddings[1] += 2
        tokens.layer_vectors[1, length] = 0.5
    model.save_pretrained(tmp_path)
    report = inspect(str(tmp_path))
    assert (report["virtual_tokens"], report["text_tokens"]) == (length, 4)
    assert [token["moved"] for token in report["tokens"][length:]] == [0, pytest.approx(2 * 32**0.5, abs=1e-3), 0, 0]
    assert [token["nearest"][0]["id"] for token in report["tokens"][length:]][::2] == IDS[::2]
    first, second = report["layer_vectors"]
    assert (first["unit"], second["unit"]) == (3, 4)
    assert first["sizes"] == [0] * (length + 4) and second["sizes"] == [0] * length + [0.5, 0, 0, 0]
    text = inspection_text(report)
    assert "4 trained tokens inside the template" in text
    assert f"{0.5 / (length + 4):.3f}" in text.split("size of vectors")[1]
    saved = tmp_path / "adapter_config.json"
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"text_token_ids": [1, 70, 300, 999]}))
    with pytest.raises(AdapterError, match="text_token_ids: the model has 400 embeddings, and an id is 999"):
        inspect(str(tmp_path))


def test_an_encoder_decoder_prefix_has_layers_of_each_place(model_folders, tmp_path):
    base = AutoModelForSeq2SeqLM.from_pretrained(model_folders["t5"])
    config = EncoderDecoderPrefixConfig(num_virtual_tokens=3, prefix_decoder=False)
    model = EncoderDecoderPromptModel(base, config)
    model.save_pretrained(tmp_path)
    report = inspect(str(tmp_path))
    assert [layer["layer"] for layer in report["layers"]] == ["encoder 0", "encoder 1", "cross 0", "cross 1"]
    slots = iter(model.prompt_encoder["default"].slots())
    for layer in report["layers"]:
        for name in ("key_norms", "value_norms"):
            assert layer[name] == pytest.approx(next(slots).norm(dim=1).tolist(), abs=1e-4)
    assert "cross 1 " in inspection_text(report)


def test_p_tuning_is_read_as_the_embeddings_that_its_encoder_wrote(base, tmp_path):
    config = PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8)
    model = add_soft_prompt(base, config)
    model.save_pretrained(tmp_path)
    written = model.get_prompt(batch_size=1)[0]
    norms = [token["norm"] for token in inspect(str(tmp_path))["tokens"]]
    assert norms == pytest.approx(written.norm(dim=1).tolist(), abs=1e-4)


def test_a_model_in_several_files_is_read_too(adapter, base, tokenizer, tmp_path, monkeypatch):
    forbid_model_loading(monkeypatch)
    moved = tmp_path / "elsewhere" / "tiny-llama"
    base.save_pretrained(moved, max_shard_size="20KB")
    tokenizer.save_pretrained(moved)
    assert (moved / "model.safetensors.index.json").is_file()
    report = inspect(str(adapter), model_name_or_path=str(moved))
    assert [token["nearest"][0]["id"] for token in report["tokens"]] == IDS
    assert report["model"] == str(moved)


def test_a_file_of_the_inner_model_is_read_too(adapter, model_folders, tmp_path, monkeypatch):
    forbid_model_loading(monkeypatch)
    moved = tmp_path / "tiny-llama"
    shutil.copytree(model_folders["llama"], moved)
    weights = load_file(moved / "model.safetensors")
    inner = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    save_file(inner, moved / "model.safetensors", metadata={"format": "pt"})
    report = inspect(str(adapter), model_name_or_path=str(moved))
    assert [token["nearest"][0]["id"] for token in report["tokens"]] == IDS


def test_only_the_used_half_of_plain_pefts_encoder_decoder_prompt_is_read(model_folders, tmp_path):
    base = AutoModelForSeq2SeqLM.from_pretrained(model_folders["t5"])
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    model = PeftModelForSeq2SeqLM(base, config)
    weight = model.prompt_encoder["default"].embedding.weight
    assert len(weight) == 6
    weight.data[:3] = base.get_input_embeddings().weight[[7, 8, 9]]
    model.save_pretrained(tmp_path)
    report = inspect(str(tmp_path))
    assert [token["nearest"][0]["id"] for token in report["tokens"]] == [7, 8, 9]


def test_embeddings_that_the_model_scales_are_read_scaled(tokenizer, tmp_path):
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    GemmaForCausalLM(config).save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "gemma")
    prompt = base.get_input_embeddings()(torch.tensor([9])).detach()
    add_soft_prompt(base, prompt_config(base, 1), prompt).save_pretrained(tmp_path / "adapter")
    report = inspect(str(tmp_path / "adapter"))
    norms = base.get_input_embeddings()(torch.arange(len(tokenizer))).norm(dim=1)
    assert report["vocabulary"]["norm_mean"] == pytest.approx(norms.mean().item(), abs=1e-3)
    assert report["tokens"][0]["norm"] == pytest.approx(norms[9].item(), abs=1e-3)


def test_the_text_of_tokens_shows_spaces_special_tokens_and_half_characters(tokenizer):
    special = tokenizer.convert_tokens_to_ids("<|user|>")
    assert token_text(tokenizer, special, special=True) == "<|user|>"
    space = tokenizer("Ada lives").input_ids
    assert "' lives'" in [token_text(tokenizer, id, special=False) for id in space]
    newline = tokenizer("\n").input_ids[0]
    assert token_text(tokenizer, newline, special=False) == r"'\n'"
    half = tokenizer("é").input_ids[0]
    assert token_text(tokenizer, half, special=False) == "piece 'Ã'"


def test_what_cannot_be_inspected_is_refused_and_nothing_is_written(adapter, tmp_path, tokenizer, monkeypatch):
    with pytest.raises(AdapterError, match=r"none: no adapter_config.json there"):
        inspect(str(tmp_path / "none"))
    with pytest.raises(ModelError, match="model_name_or_path /no/such: no such folder"):
        inspect(str(adapter), model_name_or_path="/no/such")
    tiny_llama(len(tokenizer), hidden_size=64).save_pretrained(tmp_path / "tiny-llama")
    with pytest.raises(
        AdapterError, match=r"was trained on .*\(hidden size 32\), the model here .*\(hidden size 64\)"
    ):
        inspect(str(adapter), model_name_or_path=str(tmp_path / "tiny-llama"))
    get_peft_model(tiny_llama(len(tokenizer)), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "lora")
    with pytest.raises(AdapterError, match=r"a LORA adapter; expected PROMPT_TUNING, .*PREFIX_TUNING"):
        inspect(str(tmp_path / "lora"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PromptTuningError, match="pip install matplotlib"):
        inspect(str(adapter))
    assert {path.name for path in adapter.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


def test_an_adapter_that_names_no_model_asks_for_one(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"names no base model\. Give --model_name_or_path"):
        inspect(str(adapter))
