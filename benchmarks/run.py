"""Run every benchmark, each in its own process, and write benchmarks/results.md.

make benchmark                           # or: python benchmarks/run.py
python benchmarks/run.py generation      # only that part of results.md
python benchmarks/run.py --short         # see that all run: print a short run of each, and write nothing
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from prompt_tuning.support.files import atomic_write

FOLDER = Path(__file__).parent
# The arguments of a short run, by benchmark.
BENCHMARKS = {
    "training_step": ["1"],
    "training_run": ["1"],
    "memory": ["1"],
    "generation": ["8"],
    "growth": ["4"],
    "architectures": [],
    "encode": ["1000"],
    "sweep": ["2", "2", "32", "2"],
}
# These need the environments of `make test-servers`, and run only if they are named.
OF_SERVERS = {"llama_cpp": ["--rows", "8"]}


def section(name: str, arguments: list[str]) -> str:
    """Return what a benchmark prints, under its file's first line."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    began = time.time()
    command = [sys.executable, FOLDER / f"{name}.py", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    title = (FOLDER / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].splitlines()[0].rstrip(".")
    words = " ".join(["python", f"benchmarks/{name}.py", *arguments])
    return (
        f"## {title}\n\n`{words}`, {time.strftime('%Y-%m-%d')}, {time.time() - began:.0f} s: {done.stdout.strip()}\n"
    )


def write_results(names: list[str]) -> None:
    """Run benchmarks, and replace their parts of results.md."""
    results = FOLDER / "results.md"
    saved_parts = results.read_text(encoding="utf-8").split("\n\n## ")[1:] if results.is_file() else []
    parts = {}
    for part in saved_parts:
        parts[part.split("`python benchmarks/")[1].split(".py")[0]] = f"## {part}"
    for name in names:
        parts[name] = section(name, [])
        ordered = [parts[benchmark] for benchmark in (*BENCHMARKS, *OF_SERVERS) if benchmark in parts]
        with atomic_write(results) as file:
            file.write("\n\n".join(["# Benchmarks, by `make benchmark`", *ordered]))


def main() -> None:
    known = BENCHMARKS | OF_SERVERS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(known)}")
    parser.add_argument("--short", action="store_true", help="print a short run of each, and write nothing")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(known))
    if unknown:
        parser.error(f"no benchmark {unknown[0]}. Name some of {', '.join(known)}")
    names = args.names or list(BENCHMARKS)
    if not args.short:
        write_results(names)
        return
    for name in names:
        print(section(name, known[name]), flush=True)


if __name__ == "__main__":
    main()
