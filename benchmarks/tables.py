"""Make every table of recipes/README.md anew, one after the other, in recipes/tables.md.

    make tables DATA=FOLDER                                # or: python benchmarks/tables.py FOLDER
    python benchmarks/tables.py FOLDER comparison methods  # only the tables of these scripts
    python benchmarks/tables.py FOLDER --list              # print the commands and run none

FOLDER holds a folder for each set of rows, such as qa-newwiki, with train.jsonl, validation.jsonl and test.jsonl. The
file is written after each table, and a table whose command is in it is not made again: remove it there to repeat it.
The scripts keep their runs in runs/, so that a stopped table resumes. All of it takes days on two CPU cores.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from common import ROOT
from comparison import FEW_ROWS, TASKS

from prompt_tuning.support.files import atomic_write

TABLES = ROOT / "recipes" / "tables.md"
HEAD = "# The tables of recipes/README.md, by `make tables`\n\nA table that is missing here has not been made yet."
SEEDS = ("--seeds", "42", "43", "44")
COLUMNS = ("--text_column=document", "--summary_column=summary")
LONG_PROMPTS = "--per_device_eval_batch_tokens=65536"
# The arguments of benchmarks/reference.py: a recipe, a folder of rows, and the rest.
REFERENCES = (
    ("question_answering/newwiki", "qa-newwiki"),
    ("question_answering/newwiki", "qa-newwiki", "--longest", "160", "--max_steps=120", *SEEDS, "--peft_seeds", "42"),
    ("question_answering/boolq", "qa-boolq", "--template=question_answering/yes_no"),
    ("summarization/meqsum", "summarization-meqsum", *COLUMNS, *SEEDS, "--peft_seeds", "42"),
    ("summarization/mts-dialog", "summarization-mts-dialog", LONG_PROMPTS),
    ("translation/tatoeba-fr-en", "translation-tatoeba-en-fr", *SEEDS, "--peft_seeds", "42"),
    ("translation/tico19-fr-en", "translation-tico19-en-fr", LONG_PROMPTS),
    (
        "question_answering/newwiki", "qa-newwiki", "--longest", "160", "--max_steps=40", "--train_rows", "16", "64",
        "256", *SEEDS, "--few_shot", "question_answering/plain", "4",
    ),
)  # fmt: skip


def commands(data: Path) -> Iterator[list[str]]:
    """Yield the name of a script and its arguments for each table."""
    for task in TASKS:
        yield ["comparison", str(data), "--task", task, *SEEDS]
        for rows in FEW_ROWS:
            yield ["comparison", str(data), "--task", task, "--train_rows", str(rows), *SEEDS]
    for method in ("prefix", "prompt_ending"):
        yield ["training_choices", str(data), method, "--max_steps=20"]
    yield ["methods", "--data", str(data / "qa-newwiki")]
    yield ["multitask", str(data / "qa-newwiki"), str(data / "translation-tatoeba-en-fr")]
    for recipe, rows, *rest in REFERENCES:
        yield ["reference", f"recipes/{recipe}_smollm2_prompt_tuning.yaml", str(data / rows), *rest]


def words(command: list[str]) -> str:
    """Return a command as a user types it."""
    script, *arguments = command
    return shlex.join(["python", f"benchmarks/{script}.py", *arguments])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="FOLDER")
    parser.add_argument(
        "scripts", nargs="*", metavar="SCRIPT", help="comparison, training_choices, methods, multitask, reference"
    )
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    args = parser.parse_args(argv)
    chosen = [command for command in commands(args.data) if command[0] in args.scripts or not args.scripts]
    if args.list:
        print("\n".join(map(words, chosen)))
        return
    text = TABLES.read_text(encoding="utf-8").rstrip() if TABLES.is_file() else HEAD
    for command in chosen:
        title = f"## `{words(command)}`\n"
        if title in text:
            continue
        print(words(command), file=sys.stderr, flush=True)
        began = time.time()
        script = [sys.executable, ROOT / "benchmarks" / f"{command[0]}.py", *command[1:]]
        done = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        text += f"\n\n{title}\n{time.strftime('%Y-%m-%d')}, {time.time() - began:.0f} s: {done.stdout.strip()}"
        with atomic_write(TABLES) as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
