"""Run commands in a folder of damaged files, and notice what must not happen."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import stat
import traceback
import warnings

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.damage import ESCAPE
from helpers.paths import ROOT
from prompt_tuning.cli.main import main

MAX_SECONDS = 10
# The time is that of the processor, since a machine may be busy. A command that waits has six times as much.
TIMERS = ((signal.SIGPROF, signal.ITIMER_PROF, MAX_SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 6 * MAX_SECONDS))
TEMPLATE = """\
source: |-
  {% for word in context.split() %}{{ word | upper }} {% endfor %}
  Question: {{ question | trim }}
  {% if answers.text %}Answer{% else %}None{% endif %}:
target: "{{ answers.text[0] }}"
references: answers.text
system: "Answer in {{ 1 + 1 }} words. {{ 'a' * 3 }}"
answer_choices: "yes ||| no ||| {{ answers.text | join('|||') }}"
truncate: [context]
stop: ["\\n"]
"""
RECIPE = "recipes/prompt_tuning.yaml"
SWEPT = f"recipe: {RECIPE}\nruns: {{prompt_tuning-seed42: {{}}, lora-seed42: {{recipe: recipes/lora.yaml}}}}\n"
SHORT = "--max_steps 1 --eval_strategy no --save_strategy no --load_best_model_at_end false"
COMPARE = f"compare {RECIPE} recipes/lora.yaml --output_dir runs/finished {SHORT}"
SWEEP = f"sweep sweep.yaml --output_dir runs/finished {SHORT}"
RANK = f"rank {RECIPE} --rows 3 --finalists 1 --output_dir runs/ranked --templates mine.yaml other.yaml"
ENSEMBLE = f"ensemble {RECIPE} --adapters runs/prompt_tuning runs/demonstrations --output_dir runs/demonstrations/all"


class HangError(BaseException):
    """A command ran for too long. It is no Exception, so that nothing catches it."""


def write_files(folder):
    """Write recipes, rows, a template, runs of version 0.1.0, and what the studies make of them."""
    shutil.copytree(ROOT / "tests" / "fixtures" / "v0.1.0", folder)
    for name, text in (("mine.yaml", TEMPLATE), ("other.yaml", TEMPLATE), ("sweep.yaml", SWEPT)):
        (folder / name).write_text(text)
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text("utf-8").splitlines()]
    (folder / "one.jsonl").write_text(json.dumps(rows[0]))
    (folder / "rows.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    with (folder / "rows.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with contextlib.chdir(folder):
        for command in (SWEEP, COMPARE, RANK, ENSEMBLE):
            assert run(command.split()) == "exit code 0", command


def content_of(path):
    """Return the start of a file for a message."""
    return path.read_bytes()[:2000] if path.is_file() else "no file"


def run(words):
    """Run a command, and return its exit code. Its own error is that of the test."""
    output = io.StringIO()
    place = None
    for number, timer, seconds in TIMERS:
        signal.signal(number, _hang)
        signal.setitimer(timer, seconds)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(words)
    except SystemExit as ended:
        code = ended.code
    except HangError:
        place = traceback.format_exc()
    finally:
        for _, timer, _ in TIMERS:
            signal.setitimer(timer, 0)
    assert place is None, f"it hangs\n{place}"
    text = output.getvalue()
    assert code in (0, 1, 2), text
    assert "Traceback (most recent call last)" not in text, text
    assert ESCAPE not in text, text
    return f"exit code {code}"


def _hang(*_):
    raise HangError


def snapshot(folder, writable=None):
    """Return what shows a change of each file and folder, except those within a writable folder."""
    facts = {}
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if os.path.join(root, name) != str(writable)]
        for name in (*folders, *names):
            path = os.path.join(root, name)
            status = os.lstat(path)
            changing = (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
            facts[path.removeprefix(f"{folder}/")] = (status.st_mode, changing)
    return facts


def restore(folder, intact, facts):
    """Make a folder equal to an intact one again, of which a copy had these facts of `snapshot`."""
    found = snapshot(folder)
    for name in sorted(found.keys() | facts.keys()):  # A folder comes before what it holds.
        path = folder / name
        if found.get(name) == facts.get(name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if name in facts and (intact / name).is_dir():
            path.mkdir()
        elif name in facts:
            shutil.copy2(intact / name, path)
