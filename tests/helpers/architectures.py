"""Build a tiny random model of every architecture of the engine, and compute a reference with the base model."""

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY, PROMPT = 97, 5
ROWS = [[7, 20, 31, 4, 55, 66], [7, 20], [7, 20, 12, 13, 14, 15, 16, 17, 18, 19, 21], [7, 20, 44, 5]]
TARGETS = [3, 1, 4, 2]  # So many of a row's last tokens count in the loss.

TOKENS = dict(vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=1, bos_token_id=1)
SIZES = TOKENS | dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=64, initializer_range=0.3,
)  # fmt: skip
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=16)
# The settings of each method that trains a prompt of one task, by name.
PROMPT_METHODS = {
    "prompt_tuning": {},
    "residual": dict(residual=True, encoder_hidden_size=16),
    "p_tuning": dict(method="p_tuning", encoder_hidden_size=16),
    "prefix_tuning": dict(method="prefix_tuning"),
    "prefix_tuning, projected": dict(method="prefix_tuning", prefix_projection=True, encoder_hidden_size=16),
    "cartridge": dict(method="cartridge"),
    "cpt": dict(method="cpt"),
}
# Those of them whose prompt is keys and values.
PREFIXES = ("prefix_tuning", "prefix_tuning, projected", "cartridge")
# The same for several tasks.
MULTITASK = dict(method="multitask_prompt_tuning", tasks=["a", "b"])
SETTINGS = {
    "bloom": dict(n_head=4, n_layer=2),
    "cohere": dict(logit_scale=0.5),
    "gemma": {},
    "gemma2": dict(query_pre_attn_scalar=8, attn_logit_softcapping=2.0, final_logit_softcapping=5.0),
    "gemma2, window 6": dict(sliding_window=6, attn_logit_softcapping=2.0, final_logit_softcapping=5.0),
    "gemma3_text": dict(layer_types=["full_attention"] * 3),
    "gemma3_text, window 6": dict(sliding_window=6, sliding_window_pattern=2),
    "gpt2": dict(n_embd=32, n_layer=3, n_head=4),
    "gpt_neox": {},
    "granite": dict(logits_scaling=4.0, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.3),
    "llama": {},
    "mistral": dict(sliding_window=None),
    "mistral, window 3": dict(sliding_window=3),
    "mistral, window 6": dict(sliding_window=6),
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
    "olmo2": {},
    "opt": dict(ffn_dim=64, word_embed_proj_dim=32, init_std=0.3),
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": dict(num_experts=4, **EXPERTS),
    "smollm3": dict(no_rope_layer_interval=2),
    "starcoder2": dict(sliding_window=None),
}
NO_GROUPS = ("bloom", "gpt2", "gpt_neox", "opt")  # They have a key head for each query head.
WINDOWS = [name for name in SETTINGS if "window" in name]


def build(architecture, vocabulary=VOCABULARY, positions=64):
    torch.manual_seed(0)
    name = architecture.split(",")[0]
    sizes = SIZES | {"vocab_size": vocabulary, "max_position_embeddings": positions}
    if name in NO_GROUPS:
        del sizes["num_key_value_heads"]
    if name == "gpt2":
        sizes["n_positions"] = positions
    config = AutoConfig.for_model(name, **(sizes | SETTINGS[architecture]))
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


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


def left_padded(rows=ROWS, targets=TARGETS):
    return {name: _to_the_left(tensor, rows) for name, tensor in right_padded(rows, targets).items()}


def _to_the_left(padded, rows):
    return torch.stack([row_ids.roll(len(row_ids) - len(row)) for row_ids, row in zip(padded, rows, strict=True)])


def row_logits(base, prompt, row):
    """Return the base model's logits `[len(row), V]` of one unpadded row after prompt embeddings `[P, H]`."""
    embeds = torch.cat([prompt, base.get_input_embeddings()(torch.tensor(row))])[None]
    return base(inputs_embeds=embeds, use_cache=False).logits[0, len(prompt) :]


def reference_loss(base, prompts, rows=ROWS, targets=TARGETS):
    """Return the mean loss over targets, computed row by row. Prompts are `[P, H]` for each row, or one for all."""
    prompts = prompts if isinstance(prompts, list) else [prompts] * len(rows)
    total = 0
    for prompt, row, count in zip(prompts, rows, targets, strict=True):
        logits = row_logits(base, prompt, row)[-count - 1 : -1]
        total = total + F.cross_entropy(logits, torch.tensor(row[-count:]), reduction="sum")
    return total / sum(targets)


def reference_greedy(base, prompt, row, steps):
    ids = list(row)
    for _ in range(steps):
        ids.append(row_logits(base, prompt, ids)[-1].argmax().item())
    return ids[len(row) :]
