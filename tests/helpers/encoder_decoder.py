"""Build tiny encoder-decoder models of several geometries, their rows and soft prompts."""

import torch
from peft import PromptTuningConfig, TaskType
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DynamicCache,
    EncoderDecoderCache,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from helpers.models import tiny_bart, tiny_t5

VOCABULARY, VIRTUAL = 99, 3
T5 = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_ff": 64, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0, "dropout_rate": 0.0, "num_layers": 2, "num_heads": 4, "d_kv": 8,
}  # fmt: skip
FLAN = {"d_kv": 6, "num_heads": 5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 256,
    "dropout": 0.0, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 2,
    "forced_eos_token_id": None, "init_std": 0.2, "scale_embedding": False,
}  # fmt: skip


def seeded(model_class, config):
    torch.manual_seed(0)
    return lively(model_class(config).requires_grad_(False).eval())


def lively(model):
    """Make attention count for more. Otherwise a tiny model repeats its first token after any source."""
    outputs = (".o.weight", ".wo.weight", "out_proj.weight", "fc2.weight")
    for name, parameter in model.named_parameters():
        if name.endswith(outputs):
            parameter.data.mul_(6)
    return model


BASES = {
    "t5": lambda: lively(tiny_t5(VOCABULARY)),
    "flan-t5": lambda: seeded(T5ForConditionalGeneration, T5Config(**(T5 | FLAN))),
    "t5, 2 and 4 layers": lambda: seeded(T5ForConditionalGeneration, T5Config(**T5, num_decoder_layers=4)),
    "mt5": lambda: seeded(MT5ForConditionalGeneration, MT5Config(**(T5 | FLAN))),
    "umt5": lambda: seeded(UMT5ForConditionalGeneration, UMT5Config(**(T5 | FLAN))),
    "bart": lambda: lively(tiny_bart(VOCABULARY)),
    "bart, 2 and 4 layers": lambda: seeded(
        BartForConditionalGeneration, BartConfig(**(BART | {"decoder_layers": 4, "decoder_attention_heads": 2}))
    ),
    "mbart": lambda: seeded(MBartForConditionalGeneration, MBartConfig(**BART)),
    "marian": lambda: seeded(MarianMTModel, MarianConfig(**BART)),
    "pegasus": lambda: seeded(PegasusForConditionalGeneration, PegasusConfig(**BART)),
}

SCALED = BART | {"scale_embedding": True}
SCALED_BASES = {
    "marian": lambda: seeded(MarianMTModel, MarianConfig(**SCALED)),
    "pegasus": lambda: seeded(PegasusForConditionalGeneration, PegasusConfig(**SCALED)),
}
TEXT = torch.tensor([[11, 12, 13]])
ROW = torch.tensor([[5, 9, 20, 31, 1]])
LABELS = torch.tensor([[7, 8, 1]])


def soft_config(kind=PromptTuningConfig, **changes):
    return kind(**({"task_type": TaskType.SEQ_2_SEQ_LM, "num_virtual_tokens": VIRTUAL} | changes))


def weight(model):
    return model.prompt_encoder["default"].embedding.weight


def rows(count=4, seed=3):
    """Return sources and targets of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda length: torch.randint(3, VOCABULARY, (length,), generator=generator)  # noqa: E731
    return [(draw(5 + 4 * number), draw(3 + (number * 2) % 5)) for number in range(count)]


def batch(pairs):
    sources, targets = zip(*pairs, strict=True)
    mask = pad_sequence([torch.ones_like(source) for source in sources], batch_first=True)
    labels = pad_sequence(targets, batch_first=True, padding_value=-100)
    return {"input_ids": pad_sequence(sources, batch_first=True), "attention_mask": mask, "labels": labels}


def sources(pairs):
    return {name: tensor for name, tensor in batch(pairs).items() if name != "labels"}


def summed_loss(model, inputs):
    return torch.nn.functional.cross_entropy(
        model(**inputs).logits.flatten(0, 1), inputs["labels"].flatten(), reduction="sum"
    )


def greedy(model, inputs, **changes):
    # Without repeated tokens every step shows which tokens were close.
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "no_repeat_ngram_size": 1} | changes
    of_t5 = isinstance(model, T5ForConditionalGeneration) and settings.get("use_cache", True)
    if of_t5 and model.config.num_decoder_layers > model.config.num_layers:
        settings["cache"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
    return model.generate(**inputs, **settings)
