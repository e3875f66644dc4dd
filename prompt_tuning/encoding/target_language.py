"""Select the output language of a model that marks languages by a token (mBART, NLLB, M2M-100)."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def language_id(tokenizer: PreTrainedTokenizerBase, code: str) -> int | None:
    """Return the token id of a language, or None if the tokenizer does not mark it.

    Args:
        tokenizer: a tokenizer, which may mark languages.
        code: the language as the tokenizer writes it: fr_XX, fra_Latn, or fr for __fr__.
    """
    marks = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    for mark in (code, f"__{code}__"):
        if mark in marks:
            return tokenizer.convert_tokens_to_ids(mark)
    return None


def target_language(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the arguments by which `generate` writes the tokenizer's target language; none for most models."""
    code = getattr(tokenizer, "tgt_lang", None)
    mark = language_id(tokenizer, code) if code else None
    if mark is None:
        return {}
    # mBART's targets end with their language, which becomes their first token when the model shifts them.
    last = tokenizer(text_target="").input_ids[-1:] == [mark]
    return {"decoder_start_token_id" if last else "forced_bos_token_id": mark}
