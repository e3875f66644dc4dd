"""Check that adapters whose weights do not fit their configuration are refused wherever they are loaded."""

import json
import shutil

import pytest
import torch
from helpers.paths import ROOT
from peft import OFTConfig, PromptTuningConfig, TaskType
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from prompt_tuning.cli.main import main
from prompt_tuning.engine.shared_prefix import SharedPrefixModel
from prompt_tuning.errors import AdapterError
from prompt_tuning.models.adapter_config import load_adapter_config
from prompt_tuning.models.encoder_decoder import EncoderDecoderPromptModel
from prompt_tuning.models.prompts import load_adapter

FIXTURES = ROOT / "tests" / "fixtures" / "v0.1.0"
ADAPTERS = ("prompt_tuning", "p_tuning", "prefix_tuning", "cpt", "lora", "t5_prefix")
PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning", "cpt", "multitask", "t5_prefix")


@pytest.fixture
def old(tmp_path, monkeypatch):
    """Copy runs of every method and make the copy the working directory."""
    shutil.copytree(FIXTURES, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def change_weights(run, change):
    """Replace an adapter's tensors by what `change` returns for each of them, by its number; None removes it."""
    file = run / "adapter_model.safetensors"
    tensors = {}
    for number, (name, tensor) in enumerate(load_file(file).items()):
        changed = change(number, tensor)
        if changed is not None:
            tensors[name] = changed.contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(run, **fields):
    """Set fields of an adapter's configuration, and return its file."""
    file = run / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), encoding="utf-8")
    return file


def with_number(value):
    def change(number, tensor):
        if number == 0:
            tensor.view(-1)[-1] = value
        return tensor

    return change


DAMAGES = {
    "NaN": (with_number(float("nan")), "are NaN or infinite"),
    "infinite": (with_number(float("-inf")), "are NaN or infinite"),
    "one row less": (lambda number, tensor: tensor[:-1], "has the shape"),
    "one column more": (lambda number, tensor: torch.cat([tensor, tensor[..., :1]], -1), "has the shape|not fit"),
    "another number of dimensions": (lambda number, tensor: tensor[None], "has the shape|not fit"),
    "whole numbers": (lambda number, tensor: tensor.to(torch.int32), "has the type torch.int32"),
    "nothing": (lambda number, tensor: None, "no prompt_embeddings|no prefix_task_cols|no layer of it"),
    "one tensor less": (lambda number, tensor: tensor if number else None, "weights have no|lack"),
}


def damaged(old, name, damage):
    """Damage the weights of a run, and return its folder and the message that refuses it."""
    change, message = DAMAGES[damage]
    change_weights(old / "runs" / name, change)
    return old / "runs" / name, message


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_damaged_weights_are_refused_for_every_method(name, damage, old):
    run, message = damaged(old, name, damage)
    try:
        load_adapter_config(run)
    except AdapterError as error:
        assert str(run) in str(error)
        with pytest.raises(AdapterError, match=message):
            raise
    else:  # Only the model says which layers it has, and CPT's configuration has no width.
        assert name in ("lora", "cpt")
        base = AutoModelForCausalLM.from_pretrained(old / "llama")
        with pytest.raises(AdapterError):
            load_adapter(base, run)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", PROMPTS)
def test_our_models_refuse_damaged_prompts_as_peft_loads_them(name, damage, old):
    run, message = damaged(old, name, damage)
    is_t5 = name.startswith("t5")
    base = (AutoModelForSeq2SeqLM if is_t5 else AutoModelForCausalLM).from_pretrained(
        old / ("t5" if is_t5 else "llama")
    )
    wrapper = EncoderDecoderPromptModel if is_t5 else SharedPrefixModel
    with pytest.raises(AdapterError, match=message):
        wrapper.from_pretrained(base, run)


def test_a_second_damaged_adapter_is_refused_by_name(old):
    base = AutoModelForCausalLM.from_pretrained(old / "llama")
    model = SharedPrefixModel.from_pretrained(base, old / "runs" / "prompt_tuning")
    change_weights(old / "runs" / "p_tuning", with_number(float("nan")))
    with pytest.raises(AdapterError, match="p_tuning: 1 of the 192 numbers of prompt_embeddings are NaN or infinite"):
        model.load_adapter(old / "runs" / "p_tuning", "second")


def test_half_precision_weights_are_taken(old):
    run = old / "runs" / "prompt_tuning"
    change_weights(run, lambda number, tensor: tensor.to(torch.bfloat16))
    assert load_adapter_config(run).num_virtual_tokens == 6


def test_prompts_of_two_submodules_are_taken(tmp_path):
    # PEFT saves twice the rows by default for an encoder-decoder model.
    PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=3, num_transformer_submodules=2, token_dim=8
    ).save_pretrained(tmp_path)
    save_file({"prompt_embeddings": torch.zeros(6, 8)}, tmp_path / "adapter_model.safetensors")
    assert load_adapter_config(tmp_path).num_virtual_tokens == 3


COMMANDS = {
    "predict": ["predict", "--adapter", "runs/prompt_tuning", "--input", "test.jsonl"],
    "evaluate": ["evaluate", "recipes/prompt_tuning.yaml", "--adapter", "runs/prompt_tuning"],
    "check": ["check", "recipes/prompt_tuning.yaml", "--adapter", "runs/prompt_tuning"],
    "train": ["train", "recipes/prompt_tuning.yaml", "--adapter", "runs/prompt_tuning", "--output_dir", "new"],
    "init": [
        "check", "recipes/prompt_tuning.yaml", "--init", "adapter", "--init_adapter", "runs/prompt_tuning",
        "--output_dir", "new",
    ],
    "inspect": ["inspect", "runs/prompt_tuning"],
    "push": ["push", "runs/prompt_tuning", "--repo_id", "me/prompt", "--base_model", "me/base", "--dry-run"],
    "ensemble": [
        "ensemble", "recipes/prompt_tuning.yaml", "--adapters", "runs/p_tuning", "runs/prompt_tuning",
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_prompt_that_is_not_finite(command, old, capsys, monkeypatch):
    change_weights(old / "runs" / "prompt_tuning", with_number(float("nan")))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)  # No model may load.
    assert main(COMMANDS[command]) == 1
    error = capsys.readouterr().err
    assert "1 of the 192 numbers of prompt_embeddings are NaN or infinite" in error
    assert "Traceback" not in error


def test_a_damaged_checkpoint_is_not_resumed(old, capsys):
    checkpoint = old / "runs" / "stopped_prompt_tuning" / "checkpoint-8"
    change_weights(checkpoint, with_number(float("inf")))
    flags = ["--output_dir", "runs/stopped_prompt_tuning", "--resume_from_checkpoint", "true"]
    assert main(["train", "recipes/stopped_prompt_tuning.yaml", *flags]) == 1
    assert "checkpoint-8: 1 of the" in capsys.readouterr().err


@pytest.mark.parametrize("cut", (0, 4, 8, 40, -1))
@pytest.mark.parametrize("name", ("adapter_model.safetensors", "adapter_config.json"))
def test_a_cut_file_of_an_adapter_is_named(name, cut, old):
    file = old / "runs" / "prompt_tuning" / name
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(AdapterError, match=str(file if name.endswith(".json") else file.parent)):
        load_adapter_config(file.parent)


@pytest.mark.parametrize("field", ("arrow_config", "megatron_config", "trainable_token_indices"))
def test_a_field_that_peft_cannot_use_is_an_error_of_the_folder(field, old, capsys):
    change_config(old / "runs" / "lora", **{field: {"x": None}})
    assert main(["predict", "--adapter", "runs/lora", "--input", "test.jsonl", "--output", "out.jsonl"]) == 1
    assert "runs/lora: it does not fit the model: " in capsys.readouterr().err


@pytest.mark.parametrize("value", (None, "6", 6.5, -1, 0, True, [6], {}, 2**31, 10**30))
def test_sizes_in_a_configuration_are_whole_numbers(value, old):
    file = change_config(old / "runs" / "prompt_tuning", num_virtual_tokens=value)
    with pytest.raises(AdapterError, match=r"adapter_config\.json: num_virtual_tokens"):
        load_adapter_config(file.parent)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("prompt_tuning", "base_model_name_or_path", 7),
        ("prompt_tuning", "revision", ["main"]),
        ("t5_prefix", "modules_to_save", 7),
        ("t5_prefix", "modules_to_save", [7]),
        ("lora", "target_parameters", 0.5),
        ("lora", "target_modules", {"x": 1}),
        ("lora", "rank_pattern", {"x": "2"}),
        ("t5_prefix", "places", {"decoder": [2, 4, "8"]}),
        ("t5_prefix", "places", {"decoder": [2, 4]}),
        ("cpt", "cpt_token_ids", "x" * 13),
        ("cpt", "cpt_mask", ["x"] * 13),
        ("cpt", "cpt_tokens_type_mask", [2.5] * 13),
        ("cpt", "cpt_tokens_type_mask", {str(number): 2 for number in range(13)}),
        pytest.param("lora", "lora_alpha", 10**400, id="lora-lora_alpha-1e400"),
        ("p_tuning", "encoder_hidden_size", 10**30),
        ("prompt_tuning", "num_layers", 10**30),
        ("prompt_tuning", "num_transformer_submodules", 2),
        ("prefix_tuning", "num_transformer_submodules", 2),
        ("t5_prefix", "num_transformer_submodules", 3),
    ],
)
def test_a_field_of_another_type_is_refused_with_its_name(name, field, value, old):
    file = change_config(old / "runs" / name, **{field: value})
    with pytest.raises(AdapterError, match=rf"adapter_config\.json: {field}.* (is|has) .*, expected (a|3)"):
        load_adapter_config(file.parent)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", "([a-z_.0-9]+)+!"),
        ("exclude_modules", "(a|a){9}b"),
        ("target_modules", ".*.*.*.*.*x"),
        ("target_modules", ".?" * 30 + "!"),
        ("target_modules", "(.|..)" * 20 + "!"),
        ("target_modules", f"({'|'.join('.' * 30)})!"),
        ("rank_pattern", {"(q|.)*!": 2}),
        ("alpha_pattern", {"(q|.)*!": 2}),
    ],
)
def test_a_pattern_that_a_name_could_be_compared_with_for_hours_is_refused(field, value, old):
    file = change_config(old / "runs" / "lora", **{field: value})
    with pytest.raises(AdapterError, match=rf"adapter_config\.json: {field} has the pattern .*, which repeats too"):
        load_adapter_config(file.parent)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("rank_pattern", {f"q{number}": 2 for number in range(700)}, "rank_pattern has more than 600 entries"),
        ("target_modules", [f"q{number}" for number in range(700)], "target_modules has more than 600 entries"),
        ("rank_pattern", {"q_proj": 10**7}, "the rank q_proj is 10,000,000, and no tensor has more than 64"),
        ("init_lora_weights", "pissa_niter_999999", "init_lora_weights is the text 'pissa_niter_999999', expected"),
    ],
)
def test_an_adapter_that_costs_hours_or_the_memory_is_refused_before_it_is_made(field, value, problem, old):
    file = change_config(old / "runs" / "lora", **{field: value})
    with pytest.raises(AdapterError, match=problem):
        load_adapter_config(file.parent)


def test_an_adapter_that_repeats_a_computation_for_hours_is_refused(old):
    folder = old / "runs" / "lora"
    OFTConfig(task_type="CAUSAL_LM", num_cayley_neumann_terms=10**7).save_pretrained(folder)
    with pytest.raises(AdapterError, match="num_cayley_neumann_terms is 10000000, expected a whole number up to 99"):
        load_adapter_config(folder)


@pytest.mark.parametrize(("number", "problem"), [(200, "more than 100 entries"), (200_000, "larger than 1,000,000")])
def test_many_copies_of_layers_are_refused(number, problem, old):
    file = change_config(old / "runs" / "lora", layer_replication=[[0, 1]] * number)
    with pytest.raises(AdapterError, match=problem):
        load_adapter_config(file.parent)


def test_an_ordinary_pattern_of_modules_is_taken(old):
    for pattern in (r".*\.layers\.[0-9]+\..*(q|v)_proj", r".*layers\.\d+?\.(attn|mlp)\.(q_proj|up_proj)$"):
        file = change_config(old / "runs" / "lora", target_modules=pattern)
        assert load_adapter_config(file.parent).target_modules == pattern


@pytest.mark.parametrize("text", ("[]", "3", '"text"', "null", "{}", '{"peft_type": 3}', '{"peft_type": "OTHER"}'))
def test_another_json_than_a_configuration_is_named(text, old):
    file = old / "runs" / "prompt_tuning" / "adapter_config.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError, match=r"adapter_config\.json: not the configuration of an adapter"):
        load_adapter_config(file.parent)


def test_a_prompt_is_not_read_as_lora(old):
    file = old / "runs" / "prompt_tuning" / "adapter_config.json"
    shutil.copy(old / "runs" / "lora" / "adapter_config.json", file)
    with pytest.raises(AdapterError, match="says LORA, and its weights have no layer of it, found 'prompt_embeddings"):
        load_adapter_config(file.parent)
