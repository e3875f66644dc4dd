"""Encoding of many training rows: rows a second, memory, and what a second run with the same recipe takes.

    python benchmarks/encode.py                  # 10,000 and 100,000 rows
    python benchmarks/encode.py 1000000          # some 4 GB of disk in a temporary folder

Rows are synthetic: a passage of 40 to 120 invented words, a question and an answer. A process reads the file, encodes
it and compares 1,000 evaluated rows with it (leakage). Then another process repeats this with the cache of the first.
"""

import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import MODEL, describe_machine, print_table

EVALUATED = 1000


def make_rows(file: Path, count: int, seed: int) -> None:
    """Write synthetic rows with SQuAD's columns."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aeioubdfgklmnprstvz", k=draw.randint(2, 9))) for _ in range(5000)]
    with file.open("w", encoding="utf-8") as lines:
        for _ in range(count):
            passage = draw.choices(words, k=draw.randint(40, 120))
            answer = draw.choice(passage)
            row = {
                "context": " ".join(passage) + ".",
                "question": f"What comes after {draw.choice(passage)}?",
                "answers": {"text": [answer], "answer_start": [0]},
            }
            lines.write(json.dumps(row) + "\n")


def anonymous_mib() -> float:
    """Return the MiB of this process that the kernel cannot drop, unlike those of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def measure(folder: str, workers: int) -> None:
    """Print the seconds of each stage and the peaks of memory, as JSON."""
    from transformers import AutoTokenizer

    from prompt_tuning.arguments.data_args import DataArguments
    from prompt_tuning.data.leakage import find_leaks
    from prompt_tuning.data.loading import load_splits
    from prompt_tuning.encoding.dataset import encode
    from prompt_tuning.encoding.row_encoder import Encoder
    from prompt_tuning.templates.template import Template

    encoder = Encoder(Template.load("question_answering/instruction_last"), AutoTokenizer.from_pretrained(MODEL))
    before_and_peak = [anonymous_mib()] * 2
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            before_and_peak[1] = max(before_and_peak[1], anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    args = DataArguments(train_file=f"{folder}/train.jsonl", validation_file=f"{folder}/validation.jsonl")
    marks = [time.perf_counter()]
    splits = load_splits(args, ("train", "validation"))
    marks.append(time.perf_counter())
    _, report = encode(splits["train"], encoder, training=True, num_proc=workers if workers > 1 else None)
    marks.append(time.perf_counter())
    leaks = find_leaks(encoder.template, None, splits["validation"], splits["train"])
    marks.append(time.perf_counter())
    done.set()
    watcher.join()
    stages = [after - before for before, after in itertools.pairwise(marks)]
    rss = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    figures = {
        "rows": report.rows,
        "near": len(leaks.near),
        "stages": stages,
        "anonymous": before_and_peak,
        "rss": rss,
    }
    print(json.dumps(figures))


def run(folder: str, cache: str, workers: int) -> dict:
    """Measure in a new process and return its figures."""
    command = [sys.executable, __file__, "--measure", folder, str(workers)]
    environment = os.environ | {"HF_HOME": cache, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(done.stdout)


def main() -> None:
    print(
        f"{describe_machine()}; {EVALUATED:,} evaluated rows; memory in MiB, peak RSS with the files that are mapped\n"
    )
    head = (
        "rows", "workers", "read, s", "encode, s", "rows/s", "compare, s", "again: read, encode, compare, s",
        "anonymous memory, before and peak", "peak RSS", "of a worker", "peak anonymous memory again",
    )  # fmt: skip
    table = [head]
    for count in map(int, sys.argv[1:] or (10_000, 100_000)):
        with tempfile.TemporaryDirectory() as folder:
            make_rows(Path(folder, "train.jsonl"), count, seed=0)
            make_rows(Path(folder, "validation.jsonl"), EVALUATED, seed=1)
            for workers in (1, 2):
                with tempfile.TemporaryDirectory() as cache:
                    first, again = (run(folder, cache, workers) for _ in range(2))
                read, encode, compare = first["stages"]
                table.append(
                    (
                        f"{count:,}",
                        workers,
                        f"{read:.1f}",
                        f"{encode:.1f}",
                        f"{count / encode:,.0f}",
                        f"{compare:.1f}",
                        ", ".join(f"{seconds:.1f}" for seconds in again["stages"]),
                        f"{first['anonymous'][0]:,.0f}, {first['anonymous'][1]:,.0f}",
                        f"{first['rss'][0]:,.0f}",
                        f"{first['rss'][1]:,.0f}" if workers > 1 else "",
                        f"{again['anonymous'][1]:,.0f}",
                    )
                )
                print(table[-1], file=sys.stderr, flush=True)
    print_table(*table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], int(sys.argv[3]))
    else:
        main()
