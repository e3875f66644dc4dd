"""The share of one process in the rows of a command, and the one file that all processes write."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import NamedTuple, TextIO, TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from prompt_tuning.data.writing import is_table, write_table
from prompt_tuning.errors import RecipeError
from prompt_tuning.support.files import atomic_write, made_folder, partial_path

Row = TypeVar("Row")


class Share(NamedTuple):
    """The rows of one process: of N processes, process K has the rows K, K + N, K + 2N and so on.

    Attributes:
        number: K, from 0.
        of: N.
    """

    number: int
    of: int

    @classmethod
    def of_launch(cls) -> Share:
        """Return the share of this process, which may be the only one."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def check(self, path: Path | None, output: str) -> None:
        """Raise a RecipeError if several processes would share an input that is read once, or standard output."""
        if self.of > 1 and (path is None or not path.is_file()):
            raise RecipeError("--input: several processes cannot share standard input or a pipe. Name a file.")
        if self.of > 1 and output == "-":
            raise RecipeError("--output: several processes cannot share standard output. Name a file.")

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Return the rows of this process."""
        return islice(iter(rows), self.number, None, self.of)

    @contextmanager
    def output(self, output: str) -> Iterator[TextIO]:
        """Yield the file for lines: the output itself, or a file beside it from which `write` makes the output."""
        if output == "-":
            yield sys.stdout
        elif self.of == 1 and not is_table(output):
            with atomic_write(Path(output), named_by_user=True) as file:
                yield file
        else:
            folder = Path(os.path.realpath(output)).parent
            part = partial_path(folder)
            with made_folder(folder):
                try:
                    with part.open("x", encoding="utf-8") as file:
                        yield file
                finally:
                    part.unlink(missing_ok=True)

    def total(self, counts: Counter[str]) -> Counter[str]:
        """Return the sum of what all processes counted."""
        return sum(gather_object([counts]), Counter()) if self.of > 1 else counts

    def write(self, file: TextIO, output: str) -> None:
        """Write the rows of all processes in their order, in the first process, if `file` is not the output itself."""
        if output == "-" or (self.of == 1 and not is_table(output)):
            return
        if self.of == 1:
            write_table(Path(file.name), Path(output))
            return
        parts = list(map(Path, gather_object([file.name])))
        if self.number == 0:
            alone = Share(0, 1)
            with alone.output(output) as joined:
                joined.writelines(_joined(parts))
                joined.flush()
                alone.write(joined, output)
        PartialState().wait_for_everyone()  # The others would remove their parts.


def _joined(parts: list[Path]) -> Iterator[str]:
    """Yield a line of each part in turn."""
    files = [part.open(encoding="utf-8") for part in parts]
    try:
        for line in chain.from_iterable(zip_longest(*files)):
            if line is not None:
                yield line
    finally:
        for file in files:
            file.close()
