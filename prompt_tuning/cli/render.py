"""`prompt-tuning render`: show exactly what the model sees of a row."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prompt_tuning.cli.parsing import Commands, Result, add_command, add_recipe, add_split, load_recipe, number_in
from prompt_tuning.recipe.ranges import COUNT
from prompt_tuning.support.text import agreed, counted, has_unseen_characters, print_text

if TYPE_CHECKING:
    from prompt_tuning.runs.prepare import Prepared

EXAMPLES = """\
  prompt-tuning render recipes/quickstart/qa.yaml -n 3
  prompt-tuning render recipes/quickstart/qa.yaml -n 1 --split validation --template question_answering/instruction
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "render",
        run,
        help="Show exactly what the model sees.",
        examples=EXAMPLES,
        usage="RECIPE [options]",
    )
    add_recipe(parser)
    parser.add_argument("-n", metavar="N", type=number_in(COUNT), default=3, help="rows to show (default: 3)")
    add_split(parser, "train")


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Print the first rows of a split."""
    recipe = load_recipe(args.recipe, overrides)
    from prompt_tuning.runs.prepare import prepare

    texts = []
    for text in _rendered_rows(prepare(recipe, (args.split,)), args.split, args.n):
        print_text(text)
        texts.append(text)
    return Result({"rows": texts})


def _rendered_rows(prepared: Prepared, split: str, count: int) -> Iterator[str]:
    """Yield the first rows of a split: text, tokens, which of them carry loss, and what was cut."""
    from prompt_tuning.data.loading import row_origin

    rows = prepared.encoded[split]
    for row in rows.select(range(min(count, len(rows)))):
        origin = row_origin(prepared.recipe.data, split, row["row"])
        yield "\n".join([f"== {origin}", *_row_lines(prepared, row), ""])


def _row_lines(prepared: Prepared, row: dict[str, Any]) -> list[str]:
    tokenizer = prepared.tokenizer
    labels = [label for label in row["labels"] if label != -100]
    model_ids = row["input_ids"] if prepared.config.is_encoder_decoder else row["input_ids"][: -len(labels)]
    trained_text = prepared.trained_text
    source_ids = trained_text.ordinary_ids(model_ids) if trained_text else model_ids
    # Some tokenizers add special tokens, change characters, or have no token for one.
    read = tokenizer.decode(source_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    lines = [row["source"]]
    if has_unseen_characters(row["source"]):
        lines.append(f"-- as it is written: {row['source']!r}")
    if read != row["source"]:
        lines.append(f"-- as the tokenizer reads it: {read!r}")
    special = dict.fromkeys(token for token in source_ids if token in tokenizer.all_special_ids)
    if special:
        # The text of a special token in a row is not one.
        lines.append(f"-- special tokens in it: {_quoted(tokenizer.convert_ids_to_tokens(list(special)), ' ')}")
    lines += [
        f"-- target: {tokenizer.decode(labels)!r}",
        f"-- references: {_quoted(row['references'], ' / ')}",
    ]
    if prepared.encoder.closed:
        lines.append(f"-- choices: {_quoted(row['choices'], ' / ')}")
    num_virtual = prepared.num_virtual_tokens
    soft_prompt = f"{counted(num_virtual, 'virtual token')}, then " if num_virtual else ""
    cut = _cut(row["cut_tokens"], row["omitted_demonstrations"])
    tokens = list(map(repr, tokenizer.convert_ids_to_tokens(source_ids)))
    changed = [place for place, id in enumerate(model_ids) if id != source_ids[place]]
    for place in changed:
        tokens[place] = f"*{tokens[place]}"
    trained = f" ({counted(len(changed), 'token')} of trained text, with *)" if changed else ""
    lines += [
        f"-- {soft_prompt}{counted(len(source_ids), 'source token')}{trained}, {cut}:",
        " ".join(tokens),
        f"-- {counted(len(labels), 'token')} that {agreed(len(labels), 'carry')} loss:",
        _quoted(tokenizer.convert_ids_to_tokens(labels), " "),
    ]
    return lines


def _quoted(texts: list[str], separator: str) -> str:
    return separator.join(map(repr, texts))


def _cut(tokens: int, demonstrations: int) -> str:
    cut = f"{tokens} cut to fit max_source_tokens" if tokens else "nothing cut"
    return f"{cut}, {counted(demonstrations, 'demonstration')} left out to fit it" if demonstrations else cut
