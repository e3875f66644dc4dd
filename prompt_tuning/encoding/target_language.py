"""Tell a model that marks languages (mBART, NLLB) which one to write."""

from __future__ import annotations

from transformers import (
    PreTrainedTokenizerBase,
)


def language_id(tokenizer: PreTrainedTokenizerBase, code: str) -> int | None:
    """The token of a language, by the code that the tokenizer knows it by: fr_XX, fra_Latn, or fr for __fr__."""
    marks = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return next((tokenizer.convert_tokens_to_ids(each) for each in (code, f"__{code}__") if each in marks), None)


def target_language(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """What `generate` is given so that a model writes its tokenizer's target language; nothing for most models."""
    code = getattr(tokenizer, "tgt_lang", None)
    mark = code and language_id(tokenizer, code)
    if mark is None:
        return {}
    # mBART's targets end with their language, and open with it once the model has shifted them.
    last = tokenizer(text_target="").input_ids[-1:] == [mark]
    return {"decoder_start_token_id" if last else "forced_bos_token_id": mark}
