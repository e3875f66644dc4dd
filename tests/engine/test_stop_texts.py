"""Check that decoding only a row's last tokens ends it where decoding all of it does."""

import random

import pytest
import torch
from helpers.models import tiny_sentencepiece, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from prompt_tuning.engine.stop_texts import StopTexts

PIECES = ["▁", "▁a", "a", "▁Question", ":", "n", "'t", "▁'t", "▁.", ".", "\n", "▁\n\n", "。", "é", "b" * 20]


def with_byte_fallback():
    """Return a tokenizer like Llama 2's, which writes an unknown character as bytes."""
    pieces = ["<unk>", "<pad>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def with_word_pieces():
    """Return a tokenizer like BERT's, which takes spaces before punctuation away."""
    pieces = ["[UNK]", "[PAD]", "a", "##a", "do", "n", "'", "t", ".", "##.", "question", ":", "é", "##\n", "。"]
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", clean_up_tokenization_spaces=True
    )


TOKENIZERS = {
    "bytes": tiny_tokenizer,
    "sentencepiece": tiny_sentencepiece,
    "byte fallback": with_byte_fallback,
    "word pieces": with_word_pieces,
}
STOPS = [
    ("\n",),
    ("。", "é", "Oslo"),
    ("Question:", "\n\n"),
    (" a", "n't."),
    ("</s>", "a. a", "a a a"),
    ("<eos>", "n'", "aaaa aaaa aaaa"),
]


def likely_tokens(tokenizer, stop):
    """Return the tokens of the stop texts and some others."""
    ids = set()
    for text in (*stop, " a", "\n", "é。", "."):
        ids.update(tokenizer(text, add_special_tokens=False).input_ids)
    return [*ids, *random.sample(range(len(tokenizer)), 3), tokenizer.pad_token_id]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("build", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_row_ends_at_the_token_at_which_its_whole_text_has_a_stop(build, stop):
    tokenizer = build()
    special = {id for token, id in tokenizer.get_added_vocab().items() if token in stop}
    random.seed(0)
    num_ended = 0
    for _ in range(12):
        likely = likely_tokens(tokenizer, stop)
        common = random.sample(likely, 2)  # Most rows write long before they end.
        rows = torch.tensor([random.choices([*likely, *common * random.choice([1, 50])], k=60) for _ in range(6)])
        text = torch.tensor(tokenizer(random.choice(stop), add_special_tokens=False).input_ids)
        rows[0, 30 : 30 + len(text)] = text
        criterion = StopTexts(tokenizer, stop)
        source = torch.full((6, 3), tokenizer.pad_token_id)
        width = 0
        while width < 60:
            width += 1 if width == 0 else random.choice([1, 1, 1, 2, 5])
            ended = criterion(torch.cat([source, rows[:, :width]], 1), None).tolist()
            for row, end in zip(rows[:, :width].tolist(), ended, strict=True):
                text = tokenizer.decode(row, skip_special_tokens=True).lstrip()
                expected = any(part in text for part in stop) or not special.isdisjoint(row)
                num_ended += expected
                assert end == expected, (row, text)
    assert num_ended or build is not tiny_tokenizer  # The others may lack a stop text's characters.


def test_a_stop_text_is_seen_at_the_end_of_a_long_run_of_bytes():
    tokenizer = with_byte_fallback()
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in ("木" * 20 + "。").encode()]
    criterion = StopTexts(tokenizer, ("。",))
    ended = [criterion(torch.tensor([ids[:width]]), None).item() for width in range(1, len(ids) + 1)]
    assert ended == [False] * (len(ids) - 1) + [True]


def test_only_the_last_tokens_of_a_long_row_are_decoded(monkeypatch):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(" Turin and Oslo" * 200).input_ids
    criterion = StopTexts(tokenizer, ("\n",))
    decoded = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **kwargs: decoded.append(len(ids)) or decode(ids, **kwargs))
    for width in range(1, len(ids)):
        assert not criterion(torch.tensor([ids[:width]]), None).any()
    assert max(decoded) < 40
