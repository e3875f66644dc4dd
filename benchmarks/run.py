"""Run every benchmark, each in its own process, and write benchmarks/results.md.

make benchmark                           # or: python benchmarks/run.py
python benchmarks/run.py generation      # only that part of results.md
"""

import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
BENCHMARKS = ("training_step", "training_run", "memory", "generation", "growth", "architectures", "encode", "sweep")


def section(name: str) -> str:
    """Return what a benchmark prints, under its file's first line."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    began = time.time()
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py"], stdout=subprocess.PIPE, text=True, check=True)
    title = (FOLDER / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].splitlines()[0].rstrip(".")
    command = f"`python benchmarks/{name}.py`, {time.strftime('%Y-%m-%d')}, {time.time() - began:.0f} s"
    return f"## {title}\n\n{command}: {done.stdout.strip()}\n"


def main() -> None:
    results = FOLDER / "results.md"
    saved_parts = results.read_text(encoding="utf-8").split("\n\n## ")[1:] if results.is_file() else []
    parts = {}
    for part in saved_parts:
        parts[part.split("`python benchmarks/")[1].split(".py")[0]] = f"## {part}"
    for name in sys.argv[1:] or BENCHMARKS:
        parts[name] = section(name)
        ordered = [parts[benchmark] for benchmark in BENCHMARKS if benchmark in parts]
        results.write_text("\n\n".join(["# Benchmarks, by `make benchmark`", *ordered]), encoding="utf-8")


if __name__ == "__main__":
    main()
