"""Check every method in every model family: it learns, resumes bit for bit, loads, and writes the same in a batch."""

from itertools import product

import pytest
import torch
from datasets import Dataset
from helpers.architectures import build
from helpers.models import tiny_bart, tiny_t5
from peft import PeftModel, PeftModelForCausalLM, PromptEncoderConfig

from prompt_tuning import PromptTuningArguments, PromptTuningTrainer, add_soft_prompt, load_metrics, prompt_config
from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.errors import AdapterError
from prompt_tuning.models.adapter_config import load_adapter_config
from prompt_tuning.models.prompts import CONFIGS, add_adapter, load_adapter
from prompt_tuning.models.several_prompts import load_prompts

# PEFT corrects the setting for GPT-2's LoRA itself.
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
VOCABULARY, LENGTH = 97, 4
FAMILIES = {
    "llama": lambda: build("llama"),
    "gemma3": lambda: build("gemma3_text"),
    "qwen3": lambda: build("qwen3"),
    "gpt2": lambda: build("gpt2"),
    "t5": lambda: tiny_t5(VOCABULARY),
    "bart": lambda: tiny_bart(VOCABULARY),
}
ENCODER_DECODER = ("t5", "bart")
SETTINGS = {
    "prompt_tuning": {},
    "residual": dict(residual=True, encoder_hidden_size=16),
    "p_tuning": dict(method="p_tuning", encoder_hidden_size=16),
    "p_tuning, lstm": dict(method="p_tuning", encoder_hidden_size=16, encoder_reparameterization_type="LSTM"),
    "prefix_tuning": dict(method="prefix_tuning"),
    "prefix_tuning, projected": dict(method="prefix_tuning", prefix_projection=True, encoder_hidden_size=16),
    "cartridge": dict(method="cartridge", num_frozen_tokens=2),
    "cpt": dict(method="cpt"),
    "lora": dict(method="lora", lora_r=2),
}
# A cartridge differs from a prefix in its parameters only, so that two families are enough.
FAMILIES_OF = {"cpt": FAMILIES.keys() - ENCODER_DECODER, "cartridge": ("llama", "gemma3")}
CELLS = [cell for cell in product(FAMILIES, SETTINGS) if cell[0] in FAMILIES_OF.get(cell[1], FAMILIES)]


def test_every_method_with_an_adapter_is_checked_here():
    """Except multitask prompt tuning, which tests/runs/test_multitask.py checks."""
    checked = {settings.get("method", "prompt_tuning") for settings in SETTINGS.values()}
    assert checked == {name for name in CONFIGS if not METHODS[name].trains_several_tasks}


def trainable_model(family, method):
    base = FAMILIES[family]()
    arguments = PromptArguments(**SETTINGS[method])
    torch.manual_seed(3)
    config = prompt_config(base, LENGTH, arguments, ids=range(20, 20 + LENGTH))
    if method == "lora":
        return add_adapter(base, config)
    initial = torch.randn(LENGTH, 32) if method in ("prompt_tuning", "residual") else None
    return add_soft_prompt(base, config, initial, arguments.encoder_hidden_size if arguments.residual else None)


def token_rows(encoder_decoder, count=12):
    rows = []
    for number in range(count):
        source = [7, 20 + number, *range(30, 31 + number % 5)]
        target = [40 + number % 3, 41, 1]
        if encoder_decoder:
            rows.append({"input_ids": source, "labels": target})
        else:
            rows.append({"input_ids": source + target, "labels": [-100] * len(source) + target})
    return Dataset.from_list(rows)


def trainer(model, tokenizer, folder, steps=4, **settings):
    rows = token_rows(model.config.is_encoder_decoder)
    settings = {"learning_rate": 0.01, "per_device_train_batch_size": 4, "save_steps": 2} | settings
    arguments = PromptTuningArguments(
        output_dir=str(folder), max_steps=steps, use_cpu=True, disable_tqdm=True, report_to="none", seed=5, **settings
    )
    return PromptTuningTrainer(
        model=model, args=arguments, processing_class=tokenizer, train_dataset=rows, eval_dataset=rows,
        compute_metrics=load_metrics(["exact_match"]), generation_kwargs={"max_new_tokens": 4},
    )  # fmt: skip


def trained(model):
    return {
        name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def flat_gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_every_trainable_tensor_learns_and_resuming_changes_nothing(family, method, tokenizer, tmp_path):
    model = trainable_model(family, method)
    start = trained(model)
    torch.manual_seed(0)
    trainer(model, tokenizer, tmp_path / "whole").train()
    straight = trained(model)
    for name, tensor in straight.items():
        changed = (tensor != start[name]).flatten(1).any(1) if tensor.ndim > 1 else tensor != start[name]
        assert changed.all() if name.endswith("embedding.weight") else changed.any(), name
    assert all(tensor.dtype == torch.float32 for tensor in straight.values())

    resumed = trainable_model(family, method)
    trainer(resumed, tokenizer, tmp_path / "parts").train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    for name, tensor in trained(resumed).items():
        assert torch.equal(tensor, straight[name]), name


def greedy_by_forward(model, ids, count=4, eos=1):
    """Return the new tokens of plain PEFT's forward, because its `generate` loses the cache of transformers 5.24."""
    new = []
    while len(new) < count and eos not in new:
        with torch.no_grad():
            logits = model(torch.cat([ids, torch.tensor([new], dtype=torch.long)], 1)).logits[0, -1]
        new.append(logits.argmax().item())
    return new


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_a_saved_adapter_writes_the_same_for_a_single_row_and_in_a_batch(family, method, tokenizer, tmp_path):
    model = trainable_model(family, method)
    rate = 0.3 if method != "lora" else 0.01
    run = trainer(model, tokenizer, tmp_path / "run", learning_rate=rate, save_strategy="no")
    run.train()
    before = run.evaluate()["eval_loss"]
    rows = run.eval_dataset
    written = run.predict(rows).predictions.tolist()
    model.save_pretrained(tmp_path / "adapter")

    base = FAMILIES[family]()
    again = load_adapter(base, tmp_path / "adapter")
    assert not any(parameter.requires_grad for parameter in again.parameters())
    check = trainer(again, tokenizer, tmp_path / "check")
    assert check.evaluate()["eval_loss"] == pytest.approx(before, abs=1e-5)
    for number in range(0, len(rows), 5):
        alone = check.predict(rows.select([number])).predictions[0].tolist()
        assert [token for token in alone if token > 0] == [token for token in written[number] if token > 0]
    if family == "llama":
        plain = PeftModel.from_pretrained(FAMILIES[family](), tmp_path / "adapter").eval()
        ids = torch.tensor([rows[0]["input_ids"][: rows[0]["labels"].count(-100)]])
        new = greedy_by_forward(plain, ids)
        assert [token for token in new if token > 0] == [token for token in written[0] if token > 0]


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_activation_checkpointing_accumulation_and_bfloat16_change_no_gradient(family, method, tokenizer, tmp_path):
    model = trainable_model(family, method)
    run = trainer(model, tokenizer, tmp_path)
    batch = next(iter(run.get_train_dataloader()))

    def gradient():
        model.zero_grad()
        run.compute_loss(model, dict(batch)).backward()
        return flat_gradient(model)

    model.train()
    expected = gradient()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    if method == "lora":  # Otherwise frozen embeddings give the layers no gradient.
        model.enable_input_require_grads()
    assert (gradient() - expected).norm() / expected.norm() < 1e-5
    model.get_base_model().activation_checkpointing_disable()

    items = (batch["labels"] != -100).sum()
    model.zero_grad()
    for half_batch in zip(*(tensor.chunk(2) for tensor in batch.values()), strict=True):
        part = dict(zip(batch, half_batch, strict=True))
        run.compute_loss(model, part, num_items_in_batch=items).backward()
    assert (flat_gradient(model) - expected).norm() / expected.norm() < 1e-4

    if method == "p_tuning, lstm" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("all but bfloat16 was tested: torch's LSTM takes none on this processor")
    with torch.autocast("cpu", torch.bfloat16):
        half = gradient()
    assert torch.cosine_similarity(half, expected, 0) > 0.97


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_the_best_checkpoint_is_loaded_at_the_end(family, method, tokenizer, tmp_path):
    model = trainable_model(family, method)
    rate = 0.3 if method == "lora" else 3.0  # At so high a rate the last checkpoint is not the best.
    run = trainer(
        model, tokenizer, tmp_path, steps=6, learning_rate=rate, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="loss", predict_with_generate=False, save_total_limit=None,
    )  # fmt: skip
    run.compute_metrics = None
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_disable_adapter_is_the_base_model_in_forward_and_generate(family, method, tokenizer):
    model = trainable_model(family, method)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    model.eval()
    base = FAMILIES[family]()
    ids = torch.tensor([[7, 20, 30, 31], [7, 21, 32, 33]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    settings = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    labels = {"labels": ids} if family in ENCODER_DECODER else {}
    with model.disable_adapter():
        assert torch.allclose(model(**inputs, **labels).logits, base(**inputs, **labels).logits, atol=1e-6)
        assert torch.equal(model.generate(**inputs, **settings), base.generate(**inputs, **settings))
    tuned = model(**inputs, **labels).logits[:, -ids.shape[1] :]
    assert not torch.allclose(tuned, base(**inputs, **labels).logits, atol=1e-4)


@pytest.mark.parametrize(
    "method", ["prompt_tuning", "residual", "p_tuning", "prefix_tuning, projected", "cpt", "lora"]
)
def test_training_continues_from_a_saved_adapter(method, tokenizer, tmp_path):
    model = trainable_model("llama", method)
    run = trainer(model, tokenizer, tmp_path / "run")
    run.train()
    model.save_pretrained(tmp_path / "adapter")
    base = FAMILIES["llama"]()
    again = load_adapter(base, tmp_path / "adapter", is_trainable=True)
    more = trainer(again, tokenizer, tmp_path / "more", steps=8, learning_rate=0.1)
    before = more.evaluate()["eval_loss"]
    assert before == pytest.approx(run.evaluate()["eval_loss"], abs=1e-5)
    more.train()
    assert more.evaluate()["eval_loss"] < before


def test_a_prefix_is_trained_in_a_model_that_checkpoints_activations():
    losses = []
    for checkpoints in (False, True):
        base = FAMILIES["llama"]()
        config = prompt_config(base, LENGTH, PromptArguments(method="prefix_tuning"))
        if checkpoints:
            base.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        model = add_soft_prompt(base, config).train()
        ids = torch.tensor([[7, 20, 30, 31]])
        losses.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.item())
        assert base.is_activation_checkpointing == checkpoints
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_cartridge_keeps_its_first_tokens_and_plain_peft_has_its_loss(tokenizer, tmp_path):
    model = trainable_model("llama", "cartridge")
    initial = torch.randn_like(model.get_prompt_embedding_to_save("default"))
    model = add_soft_prompt(model.unload(), model.peft_config["default"], initial)
    trainer(model, tokenizer, tmp_path, learning_rate=0.1, save_strategy="no").train()
    saved = model.get_prompt_embedding_to_save("default")
    assert torch.equal(saved[:2], initial[:2]) and (saved[2:] != initial[2:]).any(1).all()
    model.save_pretrained(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(FAMILIES["llama"](), tmp_path / "adapter").eval()
    assert type(plain) is PeftModelForCausalLM and plain.peft_config["default"].num_frozen_tokens == 2
    row = token_rows(encoder_decoder=False)[0]
    inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    expected = plain(**inputs)
    ours = model.eval()(**inputs)
    assert ours.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    again = load_adapter(FAMILIES["llama"](), tmp_path / "adapter", is_trainable=True)
    names = [name for name, parameter in again.named_parameters() if parameter.requires_grad]
    assert names == ["prompt_encoder.default.trainable_embedding"]
    assert torch.equal(again.get_prompt_embedding_to_save("default"), saved)


def test_a_cartridge_and_a_prefix_stand_before_one_model(tmp_path):
    ids = torch.tensor([[7, 20, 30, 31]])
    expected, runs = [], []
    for method in ("prefix_tuning", "cartridge"):
        model = trainable_model("llama", method).eval()
        expected.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
        model.save_pretrained(tmp_path / method)
        runs.append((tmp_path / method, load_adapter_config(tmp_path / method)))
    model, names = load_prompts(FAMILIES["llama"](), runs)
    for name, logits in zip(names, expected, strict=True):
        model.set_adapter(name)
        assert torch.allclose(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, logits, atol=1e-5)


def test_a_checkpoint_of_plain_peft_with_p_tuning_is_refused(tmp_path):
    config = PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, encoder_hidden_size=16)
    PeftModelForCausalLM(FAMILIES["llama"](), config).save_pretrained(tmp_path)
    model = trainable_model("llama", "p_tuning")
    with pytest.raises(AdapterError, match=r"no prompt_encoder\.safetensors"):
        model.load_adapter(str(tmp_path), "default", is_trainable=True)
