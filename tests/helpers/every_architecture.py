"""Build any causal or encoder-decoder architecture of transformers tiny, and compare each method with its base model.

A prompt that is the embeddings of a text, or a prefix that is its keys and values, must act as the text itself does.
This reference reads only token ids, so it shows what a model takes from ids beside their embeddings.
"""

import re
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    DynamicCache,
    EncoderDecoderConfig,
    PretrainedConfig,
)

from helpers.architectures import ROWS, TARGETS, left_padded, right_padded
from prompt_tuning import add_soft_prompt, prompt_config
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.errors import PromptTuningError
from prompt_tuning.models.loading import check_method, load_config

METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning")
TEXT = [9, 35, 23, 50]
LABELS = [[5, 6, 7, 8], [11, 12], [14, 15, 16], [9]]
STEPS = 5
PATHS = {"packed": "packed rows", "cache": "a cache of the prompt", "plain": "PEFT's forward"}
OWN_GENERATE = "text as its own generate, which differs from its forward"
GREEDY = dict(max_new_tokens=STEPS, do_sample=False, pad_token_id=0, eos_token_id=None)
# Sizes by the names that configurations give them. The first pattern that fits counts.
SIZES = [
    (r"type_vocab_size", 2),
    (r".*vocab_size.*", 97),
    (r"(max|n)_.*position.*|max_seq_len|n_ctx", 64),
    (r".*hidden_size|d_model|n_embd|dim_model|emb_dim|word_embed_proj_dim|embedding_size|embed_dim", 32),
    (r".*(intermediate_size|ffn_dim|d_ff|n_inner|dim_ff|ffn_hidden_size|mlp_dim)", 64),
    (r"num_hidden_layers|num_layers|n_layers?|(en|de)coder_layers|num_decoder_layers", 4),
    (r"num_key_value_heads|num_kv_heads|kv_n_heads|n_head_kv", 2),
    (r".*(attention_heads|num_heads|n_heads?)", 4),
    (r"d_kv|kv_channels|.*head_dim|rotary_dim", 8),
    (r"index_topk", 64),
    (r"num_expert_group", 1),
    (r"num_experts_per_tok(en)?|moe_k|.*top_?k|num_selected_experts", 2),
    (r"num_.*experts|n_routed_experts|moe_num_experts", 4),
    (r"n_group|topk_group|n_groups", 1),
    (r"kv_lora_rank", 16),
    (r".*lora_rank", 8),
    (r"state_size|mamba_d_state", 8),
]
SETTINGS = dict(
    initializer_range=0.3, init_std=0.3, scale_embedding=True, pad_token_id=0, eos_token_id=1, bos_token_id=1
)  # fmt: skip
MIXED = ["linear_attention", "full_attention"] * 2
WINDOWS = ["sliding_attention", "full_attention"]
CONVOLUTIONS = ["conv", "full_attention"] * 2
SPECIAL = {
    "bailing_hybrid": dict(layer_group_size=2),
    "bamba": dict(attn_layer_indices=[1, 3], mamba_n_heads=8, mamba_d_head=8),
    "deepseek_v2": dict(num_experts_per_tok=2, n_routed_experts=4, topk_group=1, n_group=1),
    "dory": dict(n_input_layers=1, n_recurrent_layers=2, n_output_layers=1),
    "dots1": dict(n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1),
    "gemma3n_text": dict(num_hidden_layers=8, num_kv_shared_layers=2, layer_types=WINDOWS * 4),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "granitemoehybrid": dict(layer_types=MIXED, mamba_n_heads=8, mamba_d_head=8),
    "inkling_text": dict(swa_num_key_value_heads=2, d_rel=4, rel_extent=32),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "kimi_linear": dict(layer_types=MIXED, linear_num_heads=4, linear_head_dim=8),
    "led": dict(attention_window=8),
    "lfm2": dict(layer_types=CONVOLUTIONS),
    "lfm2_moe": dict(layer_types=CONVOLUTIONS),
    "lfm3": dict(layer_types=CONVOLUTIONS),
    "mamba2": dict(num_heads=8, head_dim=8, n_groups=1),
    "nemotron": dict(num_key_value_heads=2),
    "reformer": dict(
        is_decoder=True, attn_layers=["local"] * 2, axial_pos_shape=[8, 8], axial_pos_embds_dim=[16, 16],
        local_attn_chunk_length=8,
    ),
    "xmod": dict(languages=["en_XX"], default_language="en_XX"),
    "zamba2": dict(
        layers_block_type=["mamba", "hybrid"] * 2, n_mamba_heads=8, mamba_headdim=8, attention_head_dim=16,
        attention_hidden_size=64,
    ),
}  # fmt: skip


def small_value(name, value):
    """Return a setting of a small configuration; the default if it has nothing to do with the size."""
    size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
    if size and type(value) is int and value > 0:
        return min(size, value)
    if isinstance(value, float) and "drop" in name:
        return 0.0
    if name == "head_dim":
        return value or 8
    return SETTINGS.get(name, value)


def shrink(default):
    """Return a small configuration of the same class as a default one."""
    kind = type(default)
    if kind is EncoderDecoderConfig:
        encoder = shrink(BertConfig())
        decoder = BertConfig(**encoder.to_dict() | dict(is_decoder=True, add_cross_attention=True))
        ids = dict(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
        return EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **ids)
    values = default.to_dict()
    small = {name: small_value(name, value) for name, value in values.items()}
    small = {name: value for name, value in small.items() if value != values[name]}
    if values.get("kv_lora_rank") and "num_key_value_heads" in values:
        small["num_key_value_heads"] = small["num_attention_heads"]
    sub_configs = {name: vars(default).get(name) for name in default.sub_configs}
    small |= {name: shrink(value) for name, value in sub_configs.items() if isinstance(value, PretrainedConfig)}
    if default.is_encoder_decoder:
        small["decoder_start_token_id"] = 0
    return kind(**(small | SPECIAL.get(kind.model_type, {})))


def build(config_class, **changes):
    """Return a tiny random model of a configuration's class, its weights in float32."""
    config = shrink(config_class())
    for name, value in changes.items():
        setattr(config.get_text_config(), name, value)
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config).requires_grad_(False).float().eval()
    for parameter in model.parameters():
        # Zeros and ones of a fresh model would hide what they scale.
        if parameter.numel() > 1 and parameter.std() == 0:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def prompted(base, method, text):
    """Return the model behind a prompt of a method, that of a text if there is one."""
    config = prompt_config(base, len(TEXT), PromptArguments(method=method))
    torch.manual_seed(1)
    return add_soft_prompt(base, config, text)


def text_embeddings(base):
    return base.get_input_embeddings()(torch.tensor(TEXT))


def text_states(base):
    """Return the keys and values of the text, as PEFT holds a prefix."""
    cache = DynamicCache(config=base.config)
    base(input_ids=torch.tensor([TEXT]), cache=cache, use_cache=True)
    states = [state for layer in cache.layers for state in (layer.keys, layer.values)]
    return torch.cat(states).permute(2, 0, 1, 3).flatten(1)


def behind_text(base, row):
    """Return the inputs of a row behind the text, which are ids alone."""
    return {"input_ids": torch.tensor([TEXT + row])}


def behind_embeddings(prompt):
    """Return a function like `behind_text` for the embeddings `[P, H]` of a prompt."""

    def inputs(base, row):
        return {"inputs_embeds": torch.cat([prompt, base.get_input_embeddings()(torch.tensor(row))])[None]}

    return inputs


@torch.no_grad()
def row_logits(base, inputs, row):
    """Return the logits `[len(row), V]` of a row behind its prompt."""
    return base(**inputs(base, row), use_cache=False).logits[0, len(TEXT) :]


def difference(base, model, inputs):
    """Return in which respect a causal model differs from single rows of its base model, or an empty text."""
    alone = [row_logits(base, inputs, row) for row in ROWS]
    expected = torch.cat([logits[-n - 1 : -1] for logits, n in zip(alone, TARGETS, strict=True)])
    targets = torch.tensor([token for row, n in zip(ROWS, TARGETS, strict=True) for token in row[-n:]])
    loss = F.cross_entropy(expected, targets).item()
    for side, batch in (("right", right_padded()), ("left", left_padded())):
        output = model(**batch)
        if not _close(output.logits, expected):
            return f"logits of rows padded on the {side}"
        if abs(output.loss.item() - loss) > 1e-3 * loss:
            return f"loss of rows padded on the {side}"
    return untrained_part(model, batch, output) or text_difference(base, model, inputs)


def _close(logits, expected):
    return torch.allclose(logits, expected, atol=2e-3 * expected.std().item(), rtol=1e-3)


def untrained_part(model, batch, output):
    """Return which part of the prompt has neither a gradient nor an effect, or an empty text."""
    weight = model.prompt_encoder["default"].embedding.weight
    gradient = torch.autograd.grad(output.loss, weight)[0].abs()
    if not gradient.sum(1).all():
        return "a virtual token is not trained"
    unused = gradient.sum(0) == 0
    if not unused.any():
        return ""
    with torch.no_grad():  # A model may give a part no gradient that has an effect.
        weight[:, unused] += 1
        changed = model(**batch).logits
        weight[:, unused] -= 1
    return "a part of the prompt has no effect" if torch.equal(changed, output.logits) else ""


def text_difference(base, model, inputs):
    """Return for which padding greedy text differs from single rows of the base model, or an empty text."""
    texts = []
    for row in ROWS:
        ids = list(row)
        for _ in range(STEPS):
            ids.append(row_logits(base, inputs, ids)[-1].argmax().item())
        texts.append(ids[len(row) :])
    right = {name: tensor for name, tensor in right_padded().items() if name != "labels"}
    for side, batch in (("right", right), ("left", pad_left(ROWS, 0))):
        written = model.generate(**batch, **GREEDY)[:, -STEPS:].tolist()
        if written == texts:
            continue
        generated = [base.generate(**inputs(base, row), **GREEDY)[0, -STEPS:].tolist() for row in ROWS]
        return OWN_GENERATE if written == generated else f"text of rows padded on the {side}"
    return ""


def encoder_decoder_difference(model, base, method):
    """Return in which respect an encoder-decoder differs from single rows, or an empty text.

    The rows are those of the base model behind a text, or for other prompts those of the model itself.
    """
    of_text = method == "prompt_tuning"
    alone, inputs = (base, behind_text) if of_text else (model, lambda _, row: {"input_ids": torch.tensor([row])})
    width = max(map(len, LABELS))
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in LABELS])
    logits, texts = [], []
    for row, target in zip(ROWS, LABELS, strict=True):
        logits.append(alone(**inputs(base, row), labels=torch.tensor([target])).logits[0])
        texts.append(alone.generate(**inputs(base, row), **GREEDY)[0].tolist())
    right = {name: tensor for name, tensor in right_padded().items() if name != "labels"}
    for side, batch in (("right", right), ("left", pad_left(ROWS, 0))):
        output = model(**batch, labels=labels)
        if not _close(output.logits[labels != -100], torch.cat(logits)):
            return f"logits of rows padded on the {side}"
        if model.generate(**batch, **GREEDY).tolist() != texts:
            return f"text of rows padded on the {side}"
    return untrained_part(model, batch | {"labels": labels}, output)


def outcome(config_class, method):
    """Return what a method does with an architecture.

    "exact" and the path, "refused" and the reason, "cannot be built", or "wrong" and in which respect. A model with a
    sliding window is tried with one that is shorter than the rows, too.
    """
    try:
        config = shrink(config_class())
    except Exception:
        return "cannot be built"
    refusal = refusal_of_configuration(config, method)
    if refusal:
        return refusal
    try:
        ids = torch.tensor([TEXT])
        build(config_class)(input_ids=ids, **{"labels": ids} if config.is_encoder_decoder else {})
    except Exception:
        return "cannot be built"
    window = getattr(config.get_text_config(), "sliding_window", None)
    changes = [{}, {"sliding_window": 6}] if window else [{}]
    outcomes = [compared(config_class, method, **change) for change in changes]
    return next((text for text in outcomes if not text.startswith("exact")), outcomes[-1])


def refusal_of_configuration(config, method):
    """Return "refused" and the reason if `train` refuses a model before its weights are read, else an empty text."""
    try:
        with TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            check_method(load_config(ModelArguments(model_name_or_path=folder)), method)
    except PromptTuningError as error:
        return _refused(error, config.model_type)
    return ""


def _refused(error, *names):
    """Return the reason of a refusal without the model's name, the error behind it, and the advice."""
    reason = re.sub(r"^model_name_or_path \S+ |\. (Take|Set|Load) .*| \(.*\)", "", str(error), flags=re.DOTALL)
    for name in names:
        reason = reason.replace(f"{name}: ", "").replace(name, "it")
    return f"refused: {reason}"


def compared(config_class, method, **changes):
    """Compare a method with the base model; return as `outcome` does."""
    base = build(config_class, **changes)
    try:
        if base.config.is_encoder_decoder:
            model = prompted(base, method, text_embeddings(base) if method == "prompt_tuning" else None)
            wrong = encoder_decoder_difference(model, build(config_class, **changes), method)
            return f"wrong: {wrong}" if wrong else f"exact, {PATHS['plain']}"
        if method == "prefix_tuning":
            prompt_config(base, len(TEXT), PromptArguments(method=method))  # It refuses what has no text_states.
            model = prompted(base, method, text_states(base))
            wrong = difference(base, model, behind_text)
        elif method == "prompt_tuning":
            model = prompted(base, method, text_embeddings(base))
            wrong = difference(base, model, behind_text)
        else:  # A network writes a prompt that is no text.
            model = prompted(base, method, None)
            wrong = difference(base, model, behind_embeddings(model.get_prompt(1)[0].detach()))
    except PromptTuningError as error:
        return _refused(error, type(base).__name__)
    path = PATHS[model.execution_path.name]
    if wrong and wrong != OWN_GENERATE:
        return f"wrong: {wrong}"
    return f"exact, {path}; {wrong}" if wrong else f"exact, {path}"
