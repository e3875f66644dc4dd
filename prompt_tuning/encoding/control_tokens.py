"""Keep the text of control tokens in data apart from the control tokens that a template writes.

Control tokens are the tokenizer's special tokens and the added tokens that its chat template writes. A marked text has
a stand-in for the first character of every control token that came from data. So the length of a text stays the same,
and what still looks like a control token is the template's own.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from prompt_tuning.encoding.decoding import special_tokens
from prompt_tuning.errors import TemplateError
from prompt_tuning.templates.values import map_texts

# Unicode reserves U+FDD0 to U+FDEF for the inside of programs; no text may hold them.
MARKER = "\ufdd0"
# SentencePiece writes a space at the start of a word so.
SPACE_MARK = "\u2581"
STAND_INS = tuple(map(chr, range(0xFDD1, 0xFDF0)))
_RESERVED = re.compile("[\ufdd0-\ufdef]")
_NO_CHARACTER = re.compile("[\ufdd0-\ufdef\ud800-\udfff]")  # Half a character is not text, either.


@dataclass(frozen=True)
class ControlTokens:
    """The control tokens of a tokenizer, and how texts with them are marked and encoded.

    Args:
        tokenizer: the model's tokenizer.
        ids: the id of every control token by its text.
    """

    tokenizer: PreTrainedTokenizerBase
    ids: dict[str, int]

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """A pattern of every control token, the longest first."""
        return re.compile("|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))) or "(?!)")

    @functools.cached_property
    def _stand_ins(self) -> dict[str, str]:
        """The stand-in of every character that a control token starts with."""
        return dict(zip(sorted({token[0] for token in self.ids}), STAND_INS, strict=False))

    def mark(self, value: Any) -> Any:
        """Return a row, or a value in it, with stand-ins.

        Raises:
            TemplateError: a text holds half a character, or one that is reserved for stand-ins.
        """
        return map_texts(value, self._mark_text)

    def _mark_text(self, text: str) -> str:
        found = _NO_CHARACTER.search(text)
        if found:
            raise TemplateError(f"a text holds U+{ord(found[0]):04X}, which is not a character; take it out")
        return self.pattern.sub(lambda token: self._stand_ins[token[0][0]] + token[0][1:], text)

    def plain(self, marked: str) -> str:
        """Return a marked text with its own characters."""
        return marked.translate({ord(stand_in): first for first, stand_in in self._stand_ins.items()})

    def encode(self, marked: str, **settings: Any) -> list[int]:
        """Return the token ids of a marked text, in which data has no control token.

        A text without stand-ins is encoded as the tokenizer always does.

        Args:
            marked: the text.
            settings: other arguments of the tokenizer; `target=True` encodes the text as `text_target`.

        Raises:
            TemplateError: the tokenizer cannot write a control token's text as plain text.
        """
        name = "text_target" if settings.pop("target", False) else "text"
        if not _RESERVED.search(marked):
            return self.tokenizer(**{name: marked}, **settings).input_ids
        if self.tokenizer.is_fast:
            return self._encode_apart(name, marked, settings)[0]
        if self.pattern.search(marked):
            raise TemplateError(
                f"the row holds the text of a special token, and this tokenizer ({type(self.tokenizer).__name__}) "
                "cannot tell it from the template's own; take it out of the row, or out of the template"
            )
        return self.tokenizer(**{name: self.plain(marked)}, split_special_tokens=True, **settings).input_ids

    def offsets(self, marked: str, **settings: Any) -> list[tuple[int, int]]:
        """Return for each token that `encode` gives its characters `(start, end)` in the marked text.

        A token that the tokenizer adds has none. Only a fast tokenizer knows them.
        """
        if _RESERVED.search(marked):
            return self._encode_apart("text", marked, settings)[1]
        return self.tokenizer(marked, return_offsets_mapping=True, **settings).offset_mapping

    def _encode_apart(
        self, name: str, marked: str, settings: dict[str, Any]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a text whose own control tokens are written by number, and any other control token as plain text.

        Returns:
            The token ids, and the characters of each in the marked text.
        """
        tokenizer, own_ids = self._numbered
        text, places = self._written_by_number(marked)
        encoded = tokenizer(
            **{name: self.plain(text)},
            split_special_tokens=True,
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
            **settings,
        )
        control_ids = set(self.ids.values()) - {self.tokenizer.unk_token_id}
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for token, added, (start, end) in zip(
            encoded.input_ids, encoded.special_tokens_mask, encoded.offset_mapping, strict=True
        ):
            written = [own_ids.get(token, token)]
            if token in control_ids and not added:
                written = self._characters(token)
            ids += written
            offsets += [(places[start], places[end])] * len(written)
        return ids, offsets

    def _written_by_number(self, marked: str) -> tuple[str, list[int]]:
        """Return a text with each of its own control tokens as a number, and the place in it of each character.

        The end of the text has a place too.
        """
        tokens = list(self.ids)
        text, places = "", [0]
        for piece, token in _pieces(marked, self.pattern):
            start = places.pop()
            places += range(start, start + len(piece) + 1)
            text += piece
            if token:
                written = f"{MARKER}{tokens.index(token)}{MARKER}"
                places += [places[-1]] * (len(written) - 1) + [places[-1] + len(token)]
                text += written
        return text, places

    @functools.cached_property
    def _numbered(self) -> tuple[PreTrainedTokenizerBase, dict[int, int]]:
        """A copy of the tokenizer that also reads control tokens by their numbers, and what its new ids mean."""
        tokenizer = copy.deepcopy(self.tokenizer)
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        tokenizer.add_special_tokens({"extra_special_tokens": list(self.ids)})
        own_ids = {}
        for number, (text, id) in enumerate(self.ids.items()):
            written = f"{MARKER}{number}{MARKER}"
            # The copy does not call these tokens special, so split_special_tokens leaves them whole.
            strips = {"lstrip": added[text].lstrip, "rstrip": added[text].rstrip}
            tokenizer.add_tokens([AddedToken(written, special=False, normalized=False, **strips)])
            own_ids[tokenizer.convert_tokens_to_ids(written)] = id
        return tokenizer, own_ids

    def _characters(self, token: int) -> list[int]:
        """Return the ids of a control token's characters, because some vocabularies also find it in plain text."""
        text = self.tokenizer.convert_ids_to_tokens(token)
        ids = self.tokenizer.convert_tokens_to_ids(list(text))
        if None in ids:
            raise TemplateError(f"the tokenizer cannot write {text!r} as plain text; take it out of the row")
        return ids

    def continuation(self, text: str) -> list[int]:
        """Return the token ids of a marked text within a longer one, without the space SentencePiece puts first."""
        ids = self.encode(text, add_special_tokens=False)
        first = "".join(self.tokenizer.convert_ids_to_tokens(ids[:1]))
        if text.startswith(" ") or not first.startswith(SPACE_MARK):
            return ids
        line_break = self.tokenizer("\n", add_special_tokens=False).input_ids
        after = self.encode("\n" + text, add_special_tokens=False)
        return after[len(line_break) :] if after[: len(line_break)] == line_break else ids

    def shorten(self, text: str, tokens: int) -> str:
        """Return a text of data without its last tokens."""
        # The text of a control token has several tokens, in the source too.
        settings = {"add_special_tokens": False, "split_special_tokens": bool(self.pattern.search(text))}
        if not self.tokenizer.is_fast:
            # Only a fast tokenizer knows where its tokens are in the text.
            kept = self.tokenizer(text, **settings).input_ids[:-tokens]
            return self.tokenizer.decode(kept, clean_up_tokenization_spaces=False).rstrip()
        offsets = self.tokenizer(text, **settings, return_offsets_mapping=True).offset_mapping
        keep = len(offsets) - tokens
        return text[: offsets[keep][0]].rstrip() if keep > 0 else ""


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the control tokens of a tokenizer."""
    return _control_tokens(tokenizer, len(tokenizer), str(tokenizer.chat_template))


@functools.lru_cache(maxsize=8)
def _control_tokens(tokenizer: PreTrainedTokenizerBase, size: int, chat_template: str) -> ControlTokens:
    ids = special_tokens(tokenizer)
    for id, token in tokenizer.added_tokens_decoder.items():
        if token.content in chat_template and not token.content.isspace():
            ids[token.content] = id
    return ControlTokens(tokenizer, ids)


def _pieces(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Yield what stands before each match of a pattern in a text, with the match; at the end the rest, with ""."""
    end = 0
    for match in pattern.finditer(text):
        yield text[end : match.start()], match[0]
        end = match.end()
    yield text[end:], ""
