"""Check that a base model or a whole trained model with damaged files is refused in one line that names the file."""

import json
import shutil
from base64 import b64encode

import pytest
import torch
from helpers.models import tiny_llama
from safetensors.torch import load_file, save_file
from tokenizers import normalizers

import prompt_tuning.models.layered_llama  # noqa: F401 - it lets transformers load such a model
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.cli.main import main
from prompt_tuning.errors import ModelError
from prompt_tuning.models.loading import build_empty_model, load_base_model, load_config, load_tokenizer
from prompt_tuning.models.tokenizer_growth import check_growth


@pytest.fixture
def folder(model_folders, tmp_path):
    return shutil.copytree(model_folders["llama"], tmp_path / "model")


@pytest.fixture
def sharded(folder, tokenizer):
    """Write the model as several files with an index."""
    (folder / "model.safetensors").unlink()
    tiny_llama(len(tokenizer)).save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def refused(folder, capsys, recipe_file):
    """Return what `check` says of a recipe with this model, without the words before the model's name."""
    assert main(["check", str(recipe_file(model_name_or_path=folder))]) == 1
    errors = capsys.readouterr().err
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in errors
    assert lines and all(str(folder) in line for line in lines)
    return errors


@pytest.mark.parametrize("cut", (0, 5, 8, 300, -1))
def test_cut_weights_are_refused_before_the_model_loads(cut, folder, capsys, recipe_file):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    assert f"{file}: " in refused(folder, capsys, recipe_file)


@pytest.mark.parametrize("header", (b"[]", b"{", b'{"a": 3}', b'{"a": {}}', b"\xff\xfe", b"[" * 100_000))
def test_another_header_than_that_of_safetensors_is_refused(header, folder, capsys, recipe_file):
    file = folder / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert f"{file}: its header is not that of safetensors" in refused(folder, capsys, recipe_file)


@pytest.mark.parametrize("part", [None, "text_config"])
@pytest.mark.parametrize("name", ["num_hidden_layers", "num_experts", "depth"])
def test_more_layers_than_any_model_has_are_not_made(name, part, folder, capsys, recipe_file, monkeypatch):
    """They are refused before transformers reads the file, since it makes lists of the layers."""
    monkeypatch.setattr("prompt_tuning.models.loading.load_pretrained", None)
    config = json.loads((folder / "config.json").read_text())
    change = {name: 10**8}
    (folder / "config.json").write_text(json.dumps(config | ({part: change} if part else change)))
    assert f"{name} is 100,000,000 in its config.json, and no model has" in refused(folder, capsys, recipe_file)


@pytest.mark.parametrize("entry", [{"data_offsets": [-8, 8]}, {"data_offsets": [8, 4]}, {"dtype": ""}, {"shape": 3}])
def test_a_header_of_tensors_that_cannot_be_is_refused(entry, folder, capsys, recipe_file):
    file = folder / "model.safetensors"
    entry = {"data_offsets": [0, 8], "dtype": "F32", "shape": [2]} | entry
    header = json.dumps({"a": entry, "b": entry | {"data_offsets": [0, 8]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert f"{file}: its header is not that of safetensors" in refused(folder, capsys, recipe_file)


def test_a_header_that_is_larger_than_the_file_is_not_read(folder, capsys, recipe_file):
    file = folder / "model.safetensors"
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])
    assert "its header alone would have 4,611,686,018,427,387,904" in refused(folder, capsys, recipe_file)


def test_a_cut_shard_is_named(sharded, capsys, recipe_file):
    shard = max(sharded.glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    assert f"{shard}: " in refused(sharded, capsys, recipe_file)


def test_a_missing_shard_is_named(sharded, capsys, recipe_file):
    shard = max(sharded.glob("model-*.safetensors"))
    shard.unlink()
    assert f"index.json: it names {shard.name}, which is not there" in refused(sharded, capsys, recipe_file)


@pytest.mark.parametrize("name", ("../model.safetensors", "/model.safetensors", ".."))
def test_an_index_that_names_a_file_outside_of_its_folder_is_refused(name, sharded, capsys, recipe_file):
    index = sharded / "model.safetensors.index.json"
    saved = json.loads(index.read_text())
    saved["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(saved))
    assert "which is not in its folder" in refused(sharded, capsys, recipe_file)


@pytest.mark.parametrize("text", ("[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{", ""))
def test_an_index_of_another_shape_is_named(text, sharded, recipe_file):
    (sharded / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    assert main(["check", str(recipe_file(model_name_or_path=sharded))]) == 1


def test_a_tensor_that_no_shard_has_is_not_drawn_at_random(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.layers.0.self_attn.q_proj.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    args = ModelArguments(model_name_or_path=str(folder))
    with pytest.raises(ModelError, match=r"lack 1 tensor, the first is model\.layers\.0\.self_attn\.q_proj\.weight"):
        load_base_model(args, load_config(args))


@pytest.mark.parametrize(
    "change", [{"intermediate_size": 10**12}, {"model_type": "prompt_tuning_llama", "num_layered_tokens": 10**12}]
)
def test_a_tensor_that_is_larger_than_the_files_is_not_made(change, folder):
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "mlp" not in name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    args = ModelArguments(model_name_or_path=str(folder))
    for load in (load_base_model, build_empty_model):
        with pytest.raises(
            ModelError, match=r"config.json describes [\d,]+ numbers, and its weights have [\d,]+ bits"
        ):
            load(args, load_config(args))


def test_a_tensor_of_another_shape_is_refused(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    args = ModelArguments(model_name_or_path=str(folder))
    with pytest.raises(ModelError, match="cannot be loaded as a model"):
        load_base_model(args, load_config(args))


@pytest.mark.parametrize("value", (float("nan"), float("inf"), float("-inf")))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_weights_that_are_not_finite_are_refused(value, dtype, folder):
    file = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = value
    save_file(tensors, file, metadata={"format": "pt"})
    args = ModelArguments(model_name_or_path=str(folder))
    with pytest.raises(ModelError, match=r"1\.mlp\.up_proj\.weight has numbers that are NaN or infinite"):
        load_base_model(args, load_config(args))


@pytest.mark.parametrize("text", ("[]", "3", "null", "{}", "", "{", '{"model_type": 3}', '{"model_type": []}'))
def test_a_configuration_of_another_shape_is_named(text, folder, capsys, recipe_file):
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert "config.json" in refused(folder, capsys, recipe_file)


@pytest.mark.parametrize("value", (None, "wide", -1, {}))
@pytest.mark.parametrize("key", ("hidden_size", "architectures", "rope_parameters"))
def test_a_value_of_a_configuration_of_another_type_is_no_traceback(key, value, folder):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {key: value}), encoding="utf-8")
    args = ModelArguments(model_name_or_path=str(folder))
    try:
        load_base_model(args, load_config(args))
    except ModelError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize("cut", (0, 1, 100, -2))
@pytest.mark.parametrize("name", ("tokenizer.json", "tokenizer_config.json"))
def test_a_cut_tokenizer_is_named(name, cut, folder):
    file = folder / name
    file.write_bytes(file.read_bytes()[:cut])
    args = ModelArguments(model_name_or_path=str(folder))
    with pytest.raises(ModelError, match=r"tokenizer\.json, tokenizer_config.json"):
        load_tokenizer(args)


def replaced(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
CHARSMAP = b64encode(b"\4\0\0\0" + bytes(4) + b"x" * 2000 + b"\0").decode()
TWICE = {"single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2000, "pair": [], "special_tokens": {}}
LONG = {"single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 40, "pair": []}
LONG["special_tokens"] = {"x": {"id": "x", "ids": [1] * 40, "tokens": ["x"] * 40}}
FILLING = [
    ("normalizer", replaced({"String": "a"}, "aa"), 40),
    ("normalizer", replaced({"String": "a"}, "a" * 2000), 1),
    ("normalizer", replaced({"Regex": "a|"}, "aa"), 40),
    ("normalizer", replaced({"Regex": "(?=.)"}, "a"), 40),
    ("normalizer", {"type": "ByteLevel"}, 40),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}, 1),
    ("pre_tokenizer", BYTES, 40),
    ("post_processor", {"type": "TemplateProcessing", **TWICE}, 1),
    ("post_processor", {"type": "TemplateProcessing", **LONG}, 1),
    ("decoder", replaced({"Regex": "a|"}, "aa"), 40),
]
"""A step of a tokenizer, and how often it fills the memory."""


def in_sequences(part, steps):
    """Return a part of a tokenizer with steps in a sequence in a sequence."""
    key = {"pre_tokenizer": "pretokenizers", "post_processor": "processors"}.get(part, f"{part}s")
    return {part: {"type": "Sequence", key: [{"type": "Sequence", key: steps}]}}


@pytest.mark.parametrize(("part", "step", "times"), FILLING)
def test_a_tokenizer_whose_replacements_fill_the_memory_is_refused(part, step, times, folder, monkeypatch):
    """It is not loaded before: the library normalizes its added tokens."""
    monkeypatch.setattr("prompt_tuning.models.loading.load_pretrained", None)
    saved = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("tokenizer.4.0.0.json", "tokenizer.json"):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"fast_tokenizer_files": [name]}))
        (folder / name).write_text(json.dumps(saved | in_sequences(part, [step] * times)))
        with pytest.raises(ModelError, match=r"the replacements of its tokenizer make a text [\d,]+ times as long"):
            load_tokenizer(ModelArguments(model_name_or_path=str(folder)))
        (folder / name).unlink()


def test_a_tokenizer_that_cuts_words_of_any_length_is_refused(folder):
    file = folder / "tokenizer.json"
    saved = json.loads(file.read_text())
    model = {"type": "WordPiece", "unk_token": "x", "continuing_subword_prefix": "##", "vocab": {"x": 0}}
    file.write_text(json.dumps(saved | {"model": model | {"max_input_chars_per_word": 10**6}}))
    with pytest.raises(ModelError, match="its tokenizer takes words of 1,000,000 characters"):
        load_tokenizer(ModelArguments(model_name_or_path=str(folder)))


def test_a_tokenizer_with_some_replacements_is_loaded_and_checked_in_any_format(folder):
    saved = json.loads((folder / "tokenizer.json").read_text())
    steps = [replaced({"String": "aa"}, "a")] * 40 + [replaced({"Regex": " {2,}"}, " ")] * 4
    (folder / "tokenizer.json").write_text(json.dumps(saved | in_sequences("normalizer", steps)))
    tokenizer = load_tokenizer(ModelArguments(model_name_or_path=str(folder)))
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "aa")] * 40)
    with pytest.raises(ModelError, match="the replacements of its tokenizer"):
        check_growth(tokenizer, "name")
