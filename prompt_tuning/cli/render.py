"""Exactly what the model sees of a row."""

from __future__ import annotations

from collections.abc import Iterator

from prompt_tuning.data.loading import row_origin
from prompt_tuning.runs.prepare import Prepared


def render(prepared: Prepared, split: str, count: int) -> Iterator[str]:
    """The first rows of a split: text, tokens, which of them carry loss, and what was cut."""
    tokenizer = prepared.tokenizer
    for row in prepared.encoded[split].select(range(min(count, len(prepared.encoded[split])))):
        labels = [label for label in row["labels"] if label != -100]
        source_ids = row["input_ids"] if prepared.config.is_encoder_decoder else row["input_ids"][: -len(labels)]
        yield "\n".join(
            [
                f"== {row_origin(prepared.recipe.data, split, row['row'])}",
                row["source"],
                f"-- target: {tokenizer.decode(labels)!r}",
                f"-- references: {' / '.join(map(repr, row['references']))}",
                *([f"-- choices: {' / '.join(map(repr, row['choices']))}"] if prepared.encoder.closed else []),
                f"-- {_soft(prepared)}{len(source_ids)} source tokens, {_cut(row['cut'], row['left_out'])}:",
                " ".join(map(repr, tokenizer.convert_ids_to_tokens(source_ids))),
                f"-- {len(labels)} tokens that carry loss:",
                " ".join(map(repr, tokenizer.convert_ids_to_tokens(labels))),
                "",
            ]
        )


def _soft(prepared: Prepared) -> str:
    return f"{prepared.num_virtual_tokens} virtual tokens, then " if prepared.num_virtual_tokens else ""


def _cut(tokens: int, demonstrations: int) -> str:
    cut = f"{tokens} cut to fit max_source_tokens" if tokens else "nothing cut"
    return f"{cut}, {demonstrations} demonstrations left out to fit it" if demonstrations else cut
