"""Check number types: trained weights stay in float32, and quantized base models train and predict like others."""

import json
import re
from importlib.util import find_spec

import pytest
import torch
from helpers.architectures import PROMPT, ROWS, TARGETS, build, right_padded
from helpers.models import forbid_model_loading, tiny_llama
from helpers.rows import question_rows
from helpers.trainers import soft, trainer
from peft import PeftModelForCausalLM
from safetensors.torch import load_file

from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.cli.main import main
from prompt_tuning.engine.attention import ATTENTION
from prompt_tuning.errors import RecipeError
from prompt_tuning.models.loading import load_base_model, load_config
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config
from prompt_tuning.models.quantization import quantization_config
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.predictor import Predictor
from prompt_tuning.training.trainer import PromptTuningTrainer

INT8 = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}
NF4 = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": "float32",
}  # fmt: skip
QUANTIZED = [
    pytest.param(
        INT8, "torchao.quantization.Int8Tensor", id="torchao",
        marks=pytest.mark.skipif(not find_spec("torchao"), reason="needs torchao"),
    ),
    pytest.param(
        NF4, "bitsandbytes.nn.modules.Params4bit", id="bitsandbytes",
        marks=pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs bitsandbytes"),
    ),
]  # fmt: skip
many_warnings = pytest.mark.filterwarnings("ignore")  # torchao and bitsandbytes give many warnings on a CPU.


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning", "lora"])
def test_trained_weights_and_their_optimiser_are_float32_with_a_bfloat16_model(method, recipe_file, tmp_path):
    tokens = 6 if method != "lora" else None
    recipe = str(recipe_file(method=method, num_virtual_tokens=tokens, dtype="bfloat16", max_predict_samples=1))
    assert main(["train", recipe, "--bf16", "--max_steps", "2"]) == 0
    run = tmp_path / "run"
    saved = load_file(run / "adapter_model.safetensors")
    state = torch.load(run / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
    moments = []
    for parameter_state in state.values():
        moments += [parameter_state["exp_avg"], parameter_state["exp_avg_sq"]]
    assert {tensor.dtype for tensor in (*saved.values(), *moments)} == {torch.float32}
    assert any(tensor.any() for tensor in moments)


def test_the_base_model_has_the_requested_half_precision(model_folders):
    args = ModelArguments(model_name_or_path=str(model_folders["llama"]), dtype="bfloat16")
    assert load_base_model(args, load_config(args)).dtype == torch.bfloat16


def test_bfloat16_autocast_trains_on_a_cpu_and_float16_is_refused(
    tokenizer, tmp_path, recipe_file, capsys, monkeypatch
):
    losses = []
    for settings in ({}, {"bf16": True}):
        run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, **settings)
        run.train()
        losses.append(torch.tensor([entry["loss"] for entry in run.state.log_history if "loss" in entry]))
    assert 0 < (losses[1] - losses[0]).abs().max() < 0.05
    forbid_model_loading(monkeypatch)
    assert main(["train", str(recipe_file()), "--fp16"]) == 2
    assert "fp16 has no effect on a CPU: accelerate trains in float32. Set bf16: true" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "lora", "full"])
def test_every_evaluation_and_prediction_computes_under_the_autocast_of_training(
    method, recipe_file, tmp_path, monkeypatch
):
    seen = set()
    evaluating = []
    linear = torch.nn.Linear.forward
    loop = PromptTuningTrainer.evaluation_loop

    def noted(self, *args):
        seen.update([torch.is_autocast_enabled("cpu")] if evaluating else [])
        return linear(self, *args)

    def evaluation_loop(*args, **kwargs):
        evaluating.append(True)
        try:
            return loop(*args, **kwargs)
        finally:
            evaluating.pop()

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)
    monkeypatch.setattr(PromptTuningTrainer, "evaluation_loop", evaluation_loop)
    short = None if method in ("lora", "full") else 6
    settings = {"method": method, "num_virtual_tokens": short, "bf16": "true", "eval_strategy": "epoch"}
    assert main(["train", str(recipe_file(**settings))]) == 0
    assert seen == {True}
    seen.clear()
    evaluating.append(True)
    # The texts may differ from the run's: matrix products round by their shape (tests/engine/test_half_precision.py).
    assert len(Predictor.load(tmp_path / "run")(question_rows(9, 5))) == 9
    assert seen == {True}


def test_half_precision_set_by_accelerate_is_in_the_recipe_and_in_predictions(
    recipe_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    recipe = str(recipe_file(max_predict_samples=3, use_cpu=None))
    assert main(["train", recipe]) == 0
    saved_recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    # Without use_cpu, bf16 is refused on a machine without a GPU.
    assert "bf16: true" in saved_recipe and "use_cpu: true" in saved_recipe
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert Predictor.load(tmp_path / "run").autocast == torch.bfloat16
    assert main(["train", recipe, "--resume_from_checkpoint", "auto"]) == 0
    assert "is continued with other settings than the run in its folder had: bf16, use_cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("quantization", "code", "message"),
    [
        ({"load_in_8bit": True, "load_in_4bit": True}, 2, "load_in_4bit and load_in_8bit exclude each other"),
        ({"load_in_8bit": True, "bnb_4bit_quant_type": "nf4"}, 2, "bnb_4bit_quant_type has no effect without"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": "yes"}, 2, "load_in_4bit is 'yes'. Set true or false."),
        ("nf4", 2, 'quantization_config: expected a mapping, found \'nf4\'. Set {"quant_method": "bitsandbytes", '),
        ({"load_in_4bit": True}, 1, "bitsandbytes needs bitsandbytes>=0.46.1, which is not installed. Run `pip"),
        (INT8, 1, "torchao needs torchao>=0.15.0, which is not installed. Run `pip install 'torchao>=0.15.0'`."),
        ({"quant_method": "guess"}, 2, "quantization_config: Unknown quantization type, got guess"),
        ({"bits": 4}, 2, "quantization_config: The model's quantization config from the arguments has no `quant_met"),
        ({"quant_method": "eetq", "weigths": "int8"}, 2, "EetqConfig has no setting weigths. Did you mean weights?"),
    ],
)
def test_an_invalid_quantization_stops_before_the_model_loads(
    quantization, code, message, recipe_file, capsys, monkeypatch
):
    forbid_model_loading(monkeypatch)
    for name in ("is_bitsandbytes_available", "is_torchao_available"):
        monkeypatch.setattr(f"prompt_tuning.models.quantization.{name}", lambda: False)
    assert main(["train", str(recipe_file(quantization_config=quantization))]) == code
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors


def test_full_fine_tuning_of_quantized_weights_is_refused(recipe_file, capsys):
    recipe = recipe_file(method="full", num_virtual_tokens=None, quantization_config=NF4)
    assert main(["train", str(recipe)]) == 2
    assert "quantization_config: method full trains all weights" in capsys.readouterr().err


def test_bitsandbytes_gets_the_mapping_of_the_recipe_or_the_command_line(recipe_file, monkeypatch):
    monkeypatch.setattr("prompt_tuning.models.quantization.is_bitsandbytes_available", lambda: True)
    eight = quantization_config(ModelArguments(quantization_config={"load_in_8bit": True}))
    assert eight.load_in_8bit and not eight.load_in_4bit
    mapping = dict(NF4, bnb_4bit_compute_dtype="bfloat16", bnb_4bit_use_double_quant=True)
    flags = ["--quantization_config", json.dumps(mapping)]
    for recipe in (load_recipe(recipe_file(quantization_config=mapping)), load_recipe(recipe_file(), flags)):
        assert recipe.model.quantization_config == mapping == recipe.resolved()["quantization_config"]
        four = quantization_config(recipe.model).to_dict()
        assert {name: four[name] for name in mapping} == mapping
    assert quantization_config(ModelArguments()) is None


@pytest.mark.parametrize(
    ("settings", "computing"),
    [
        ({"bf16": "true"}, "bfloat16"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "bfloat16", "bnb_4bit_compute_dtype": "float32"}, "float32"),
        ({}, None),
    ],
)
def test_4_bit_weights_compute_in_the_type_of_the_training(settings, computing, recipe_file, monkeypatch):
    monkeypatch.setattr("prompt_tuning.models.quantization.is_bitsandbytes_available", lambda: True)
    mapping = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    mapping |= {name: settings.pop(name) for name in list(settings) if name.startswith("bnb_")}
    path = recipe_file(quantization_config=mapping, **settings)
    recipe = load_recipe(path)
    saved = recipe.resolved()["quantization_config"]  # Predictions of the run read this.
    assert saved.get("bnb_4bit_compute_dtype") == computing
    assert quantization_config(recipe.model).bnb_4bit_compute_dtype == getattr(torch, computing or "float32")
    assert load_recipe(path, for_prediction=True).model.quantization_config == mapping


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"load_in_8bit": True}, "FSDP splits quantized weights only of load_in_4bit"),
        ({"load_in_4bit": True}, "Set bnb_4bit_quant_storage: bfloat16."),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "float32"}, "Set bnb_4bit_quant_storage: bfloat16."),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}, None),
    ],
)
def test_quantized_weights_that_fsdp_would_not_split_are_refused(quantization, message, recipe_file, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    path = recipe_file(quantization_config=quantization, bf16="true")
    if message is None:
        assert load_recipe(path).model.quantization_config["bnb_4bit_quant_storage"] == "bfloat16"
    else:
        with pytest.raises(RecipeError, match=re.escape(message)):
            load_recipe(path)


@pytest.mark.parametrize(("dtype", "reported"), [(torch.float32, True), (torch.bfloat16, False)])
def test_frozen_weights_that_each_forward_casts_are_reported(dtype, reported, tokenizer, tmp_path, caplog):
    base = tiny_llama(len(tokenizer)).to(dtype).requires_grad_(False)
    model = add_soft_prompt(base, prompt_config(base, 6))
    run = trainer(model, tokenizer, tmp_path, bf16=True, max_steps=1)
    run.train()
    run.evaluate()
    assert caplog.text.count("Load them with dtype: bfloat16") == reported
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    caplog.clear()
    trainer(soft("llama", tokenizer), tokenizer, tmp_path, max_steps=1).train()
    assert "Load them with dtype" not in caplog.text


@many_warnings
@pytest.mark.parametrize(("settings", "kind"), QUANTIZED)
def test_with_quantized_weights_the_engine_has_the_loss_and_gradient_of_peft(settings, kind, tmp_path):
    build("llama").save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path), quantization_config=settings)
    torch.manual_seed(1)
    initial = torch.randn(PROMPT, 32) * 0.5
    outcomes = []
    for make in (lambda base: add_soft_prompt(base, prompt_config(base, PROMPT)), None):
        base = load_base_model(args, load_config(args))
        weight = base.model.layers[0].mlp.up_proj.weight
        assert f"{type(weight).__module__}.{type(weight).__name__}" == kind
        model = make(base) if make else PeftModelForCausalLM(base, prompt_config(base, PROMPT))
        embedding = model.prompt_encoder["default"].embedding.weight
        embedding.data.copy_(initial)
        model.eval()
        loss = model(**right_padded(ROWS, TARGETS)).loss
        loss.backward()
        outcomes.append((loss.item(), embedding.grad, base.config._attn_implementation))
    (loss, gradient, attention), (expected, reference, _) = outcomes
    assert attention == ATTENTION and loss == pytest.approx(expected, abs=1e-5)
    assert (gradient - reference).norm() / reference.norm() < 1e-4


@many_warnings
@pytest.mark.parametrize("method", ["prompt_tuning", "lora"])
@pytest.mark.parametrize(("settings", "kind"), QUANTIZED)
def test_a_quantized_run_trains_evaluates_with_and_without_its_prompt_and_predicts(
    settings, kind, method, recipe_file, tmp_path, tokenizer
):
    model = tmp_path / "model"  # Its layers are as wide as a block of bitsandbytes.
    tiny_llama(len(tokenizer), hidden_size=64, intermediate_size=128).save_pretrained(model)
    tokenizer.save_pretrained(model)
    changes = dict(model_name_or_path=model, num_virtual_tokens=6 if method != "lora" else None, max_predict_samples=2)
    changes |= {"quantization_config": settings, "method": method, "eval_strategy": "steps", "eval_steps": 2}
    recipe = str(recipe_file(**changes))
    assert main(["train", recipe]) == 0
    run = tmp_path / "run"
    # Packed weights are counted one by one.
    assert json.loads((run / "results.json").read_text())["total_parameters"] > 120_000
    output = str(tmp_path / "predicted.jsonl")
    assert main(["predict", "--adapter", str(run), "--input", str(tmp_path / "test.jsonl"), "--output", output]) == 0
    assert main(["evaluate", recipe]) == 0  # Trainer refuses a quantized model without an adapter.
