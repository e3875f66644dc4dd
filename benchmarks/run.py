"""Run every benchmark, each in its own process, and write benchmarks/results.md.

make benchmark        # or: python benchmarks/run.py
"""

import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
BENCHMARKS = ("training_step", "training_run", "memory", "generation", "growth", "architectures")


def main() -> None:
    start, parts = time.time(), []
    for name in BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        began = time.time()
        done = subprocess.run([sys.executable, FOLDER / f"{name}.py"], stdout=subprocess.PIPE, text=True, check=True)
        title = (FOLDER / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
        command = f"`python benchmarks/{name}.py`, {time.time() - began:.0f} s"
        parts.append(f"## {title.rstrip('.')}\n\n{command}: {done.stdout.strip()}\n")
        taken = f"{time.strftime('%Y-%m-%d')}, {time.time() - start:.0f} s in all"
        head = f"# Benchmarks\n\nWritten by `make benchmark`: {taken}."
        (FOLDER / "results.md").write_text("\n\n".join([head, *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
