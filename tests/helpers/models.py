"""Build tiny models and tokenizers in memory."""

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers.rows import question_rows

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer():
    """Train a byte-level BPE tokenizer of some 400 pieces, with end, padding and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [row["context"] + " " + row["question"] for row in question_rows(40)]
    tokenizer.train_from_iterator([*texts, "Answer the question. Context: Question: Answer: Summary:"] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", chat_template=CHAT_TEMPLATE
    )


def tokenizer_with_beginning():
    """Return a tokenizer that puts a token before every text, such as those of Llama 3 and Gemma."""
    tokenizer = tiny_tokenizer()
    beginning = ("<|system|>", 2)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|system|> $A", special_tokens=[beginning]
    )
    return tokenizer


def tiny_sentencepiece(scheme="first"):
    """Train a tokenizer that puts a space before a text, such as those of Llama 2 and T5."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<unk>", "<pad>", "<bos>", "<eos>"],
        unk_token="<unk>",
        initial_alphabet=[chr(number) for number in (10, *range(33, 127))],
        show_progress=False,
    )
    texts = [row["context"] + "\n" + row["question"] for row in question_rows(40)]
    tokenizer.train_from_iterator(texts * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def tiny_gguf(path):
    """Write a Llama of one layer and 26 letters as a GGUF file."""
    writer = gguf.GGUFWriter(path, "llama")
    size, pieces = 32, [*map(chr, range(97, 123)), "ab"]
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(size)
    writer.add_feed_forward_length(size)
    writer.add_head_count(2)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(pieces)
    writer.add_token_merges(["a b"])
    layer = [f"blk.0.{name}.weight" for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")]
    for name in (*layer, "blk.0.ffn_down.weight"):
        writer.add_tensor(name, np.ones((size, size), np.float32))
    for name in ("token_embd.weight", "output.weight"):
        writer.add_tensor(name, np.ones((len(pieces), size), np.float32))
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny_llama(vocab_size, seed=0, **settings):
    torch.manual_seed(seed)
    config = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,  # It is larger than usual, so that outputs depend on their inputs.
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**(config | settings))).requires_grad_(False).eval()


def tiny_t5(vocab_size):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).requires_grad_(False).eval()


def tiny_bart(vocab_size):
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=vocab_size, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=256, dropout=0.0,
        pad_token_id=0, eos_token_id=1, bos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
        init_std=0.1,
    )  # fmt: skip
    return BartForConditionalGeneration(config).requires_grad_(False).eval()


def forbid_model_loading(monkeypatch):
    """Fail if a base model is loaded, to show that an error comes before the weights are read."""

    def load(*args, **kwargs):
        pytest.fail("a base model was loaded")  # No `except Exception` catches it.

    for auto in (AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        monkeypatch.setattr(auto, "from_pretrained", load)
