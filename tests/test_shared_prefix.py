"""The engine gives the numbers of a plain forward, row by row, whatever the batch looks like."""

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_llama
from peft import PeftModel, PeftModelForCausalLM, PromptTuningConfig
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from prompt_tuning.encoding import pad_left
from prompt_tuning.model import add_soft_prompt, prompt_config
from prompt_tuning.shared_prefix import PACKED_ARCHITECTURES, SharedPrefixModel

VOCABULARY, PROMPT = 97, 5
ROWS = [[7, 20, 31, 4, 55, 66], [8, 9], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21], [90, 3, 44, 5]]
TARGETS = [3, 1, 4, 2]  # how many of a row's last tokens carry loss
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=None,
)  # fmt: skip


def build(architecture):
    torch.manual_seed(0)
    if architecture == "llama":
        return tiny_llama(VOCABULARY, num_hidden_layers=3)
    models = {
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
        "mistral, window 6": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)),
        "mistral, window 3": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=3)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
        "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES)),
    }
    return models[architecture]().requires_grad_(False).eval()


# Plain PEFT says so each time it generates from a prompt; here that is what is under test.
POSITION_WARNING = pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
TOKENS = dict(vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=1, bos_token_id=1)
LAYERS = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
GPT2 = dict(n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
BLOOM = dict(hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **TOKENS)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**LAYERS, word_embed_proj_dim=32, ffn_dim=64, init_std=0.3, **TOKENS)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**LAYERS, intermediate_size=64, initializer_range=0.3, **TOKENS)
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**BLOOM, **TOKENS)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=6)),
}
ARCHITECTURES = ["llama", "mistral", "mistral, window 6", "mistral, window 3", "qwen2", "qwen3", "phi3"]


def soft(base):
    torch.manual_seed(1)
    model = add_soft_prompt(base, prompt_config(base, PROMPT), torch.randn(PROMPT, base.config.hidden_size))
    assert isinstance(model, SharedPrefixModel)
    return model, model.prompt_encoder["default"].embedding.weight


def right_padded(rows=ROWS, targets=TARGETS):
    width = max(map(len, rows))
    labels = [
        [-100] * (len(row) - n) + row[-n:] + [-100] * (width - len(row)) for row, n in zip(rows, targets, strict=True)
    ]
    return {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor(labels),
    }


def reference_loss(base, weight):
    """From the base model alone: one row at a time, unpadded, the prompt's embeddings before the row's."""
    total = 0
    for row, count in zip(ROWS, TARGETS, strict=True):
        ids = torch.tensor([row])
        embeds = torch.cat([weight[None], base.get_input_embeddings()(ids)], 1)
        logits = base(inputs_embeds=embeds).logits[0, -count - 1 : -1]
        total = total + F.cross_entropy(logits, ids[0, -count:], reduction="sum")
    return total / sum(TARGETS)


def gradient(loss, weight):
    return torch.autograd.grad(loss, weight)[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradient_are_those_of_single_rows(architecture):
    base = build(architecture)
    model, weight = soft(base)
    assert model.not_packed is None
    loss = model(**right_padded()).loss
    expected = reference_loss(base, weight)
    assert abs(loss.item() - expected.item()) < 1e-5
    wanted = gradient(expected, weight)
    assert (gradient(loss, weight) - wanted).norm() / wanted.norm() < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_text_is_the_same_alone_and_in_a_padded_batch(architecture):
    model, _ = soft(build(architecture))
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    batch = pad_left(ROWS, 0)
    together = model.generate(**batch, **settings)
    for number, row in enumerate(ROWS):
        alone = model.generate(**pad_left([row], 0), **settings)[0, len(row) :]
        assert together[number, batch["input_ids"].shape[1] :].tolist() == alone.tolist()
        assert alone.tolist() == greedy_reference(model, row, 8)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # packed, and PEFT's own forward
def test_the_side_of_the_padding_changes_no_loss(attention):
    base = build("llama")
    base.set_attn_implementation(attention)
    model, _ = soft(base)
    right = right_padded()
    left = {"labels": torch.full_like(right["labels"], -100)} | pad_left(ROWS, 0)
    for number, count in enumerate(TARGETS):
        left["labels"][number, -count:] = left["input_ids"][number, -count:]
    assert model(**left).loss.item() == pytest.approx(model(**right).loss.item(), abs=1e-6)


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_architectures_take_pefts_forward_and_are_as_exact(architecture):
    base = OTHERS[architecture]().requires_grad_(False).eval()
    model, weight = soft(base)
    assert model.not_packed is not None
    assert abs(model(**right_padded()).loss.item() - reference_loss(base, weight).item()) < 1e-5
    batch = pad_left(ROWS, 0)
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for number, row in enumerate(ROWS):
        assert together[number].tolist() == greedy_reference(model, row, 6)


def greedy_reference(model, row, steps):
    base, weight = model.get_base_model(), model.prompt_encoder["default"].embedding.weight
    ids = list(row)
    for _ in range(steps):
        embeds = torch.cat([weight[None], base.get_input_embeddings()(torch.tensor([ids]))], 1)
        ids.append(base(inputs_embeds=embeds).logits[0, -1].argmax().item())
    return ids[len(row) :]


@POSITION_WARNING
def test_plain_peft_decodes_a_left_padded_row_differently_and_so_the_engine_exists():
    base = tiny_llama(VOCABULARY, num_hidden_layers=3)
    ours, weight = soft(base)
    plain = PeftModelForCausalLM(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPT))
    plain.prompt_encoder["default"].embedding.weight.data.copy_(weight)
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    row, padded = pad_left([ROWS[1]], 0), pad_left([ROWS[1], ROWS[2]], 0)
    alone = plain.generate(**row, **settings)[0, -8:]
    assert alone.tolist() == ours.generate(**row, **settings)[0, -8:].tolist()
    assert alone.tolist() == ours.generate(**padded, **settings)[0, -8:].tolist()
    assert alone.tolist() != plain.generate(**padded, **settings)[0, -8:].tolist()


def test_beams_and_returned_sequences_are_those_of_a_single_row():
    model, _ = soft(build("llama"))
    settings = dict(
        max_new_tokens=6, num_beams=4, num_return_sequences=2, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    batch = pad_left(ROWS, 0)
    together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    assert together.shape == (len(ROWS) * 2, 6)
    for number, row in enumerate(ROWS):
        alone = model.generate(**pad_left([row], 0), **settings)[:, len(row) :]
        assert together[2 * number : 2 * number + 2].tolist() == alone.tolist()


def test_what_is_not_packed_takes_pefts_forward_and_says_why(caplog):
    base = tiny_llama(VOCABULARY)
    base.set_attn_implementation("eager")
    model, weight = soft(base)
    assert "runs eager attention" in caplog.text
    loss = model(**right_padded()).loss
    assert abs(loss.item() - reference_loss(base, weight).item()) < 1e-5


def test_loss_counts_items_as_trainer_does_and_smooths_as_torch_does():
    base = build("llama")
    model, _ = soft(base)
    batch = right_padded()
    plain = model(**batch)
    assert plain.logits.shape == (sum(TARGETS), VOCABULARY)
    assert model(**batch, num_items_in_batch=40).loss.item() == pytest.approx(plain.loss.item() * sum(TARGETS) / 40)
    wanted = batch["labels"][batch["labels"] != -100]
    expected = F.cross_entropy(plain.logits, wanted, label_smoothing=0.1).item()
    assert model(**batch, label_smoothing=0.1).loss.item() == pytest.approx(expected)


def test_activation_checkpointing_changes_no_gradient():
    model, weight = soft(build("llama"))
    wanted = gradient(model(**right_padded()).loss, weight)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert torch.equal(gradient(model(**right_padded()).loss, weight), wanted)


def test_a_half_precision_model_keeps_its_prompt_in_float32():
    base = tiny_llama(VOCABULARY).to(torch.bfloat16)
    model, weight = soft(base)
    loss = model(**right_padded()).loss
    assert weight.dtype == torch.float32 and loss.dtype == torch.float32
    assert gradient(loss, weight).dtype == torch.float32
    assert model.generate(**pad_left(ROWS, 0), max_new_tokens=2, pad_token_id=0).shape == (4, 13)


@POSITION_WARNING
def test_the_saved_adapter_predicts_the_same_in_plain_peft(tmp_path):
    model, _ = soft(build("llama"))
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert type(plain) is PeftModelForCausalLM
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    for row in ROWS:
        batch = pad_left([row], 0)
        assert torch.equal(plain.generate(**batch, **settings), model.generate(**batch, **settings))


def test_every_packed_architecture_is_held_to_the_reference():
    assert {name.split(",")[0] for name in ARCHITECTURES} == set(PACKED_ARCHITECTURES)
