"""Give commands files that a seeded generator damaged, and count what must not happen."""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import yaml

from helpers.paths import ROOT
from prompt_tuning.cli.main import main

FIXTURES = ROOT / "tests" / "fixtures" / "v0.1.0"
MAX_SECONDS = 10
RUNS = ("prompt_tuning", "p_tuning", "prefix_tuning", "cpt", "lora", "demonstrations", "multitask/rivers", "t5_prefix")
RUN_FILES = ("results.json", "log_history.json", "recipe.yaml", "template.yaml", "predictions/test.jsonl", "README.md")
VALUES = (
    None,
    True,
    False,
    -1,
    0,
    1,
    7,
    100_000_000,
    10**30,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    0.5,
    "",
    " ",
    "x",
    "x" * 5000,
    "../../outside",
    "/dev/null/x",
    "a/b",
    "http://localhost:1/x",
    "no",
    "null",
    "1e400",
    "-1",
    "nan",
    "\x00",
    "\x1b[31m",
    "\ud7ff\u202e",
    "line\nbreak",
    "{{ 9**(9**9) }}",
    "{{ context }}",
    "{% for",
    "[[",
    "runs",
    ".",
    "llama",
    [],
    [[]],
    [1, "x"],
    {},
    {"a": None},
    {"": {}},
    [None],
    "9" * 5000,
)
SNIPPETS = (
    "\0",
    "\n",
    "\t",
    "{",
    "}",
    "[",
    "]",
    '"',
    "'",
    ":",
    ",",
    "&a ",
    "*a",
    "!!python/object:os.system ",
    "<<: ",
    "- ",
    "|",
    "{{",
    "}}",
    "{%",
    "%}",
    "\ufeff",
    "\u2028",
    "\ud7ff",
    "9" * 5000,
    "[" * 3000,
    '{"a":' * 3000,
    "NaN",
    "null",
    "true",
    "| join",
    "| tojson",
    " ** 9",
    "~ context",
    "{% include 'x' %}",
    "{% for i in range(100000) %}",
    "{% endfor %}",
)
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


class HangError(BaseException):
    """A command that ran for MAX_SECONDS; it is no Exception, so that nothing catches it."""


def damaged_value(draw, value):
    """Return a value with one of its parts changed, added, removed or taken from another place."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        kind = draw.random()
        if kind < 0.1:
            return {name: item for name, item in value.items() if name != key}
        if kind < 0.2:
            return value | {draw.choice(("x", "", "trust_remote_code", f"{key}x")): draw.choice(VALUES)}
        if kind < 0.3:
            return value | {key: value[draw.choice(list(value))]}
        return value | {key: damaged_value(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        kind = draw.random()
        if kind < 0.2:
            return value[:place] + value[place + 1 :]
        if kind < 0.3:
            return [*value, *value, value[place]]
        return [*value[:place], damaged_value(draw, value[place]), *value[place + 1 :]]
    return draw.choice(VALUES)


def damaged_bytes(draw, content):
    """Return bytes that were cut, changed or repeated, or have a snippet at a random place."""
    place = draw.randrange(len(content) + 1)
    kind = draw.random()
    if kind < 0.15:
        return content[:place]
    if kind < 0.3:
        return content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]
    if kind < 0.4:
        end = min(len(content), place + draw.randrange(1, 200))
        return content[:place] + content[end:]
    if kind < 0.5:
        return content + content[place:]
    return content[:place] + draw.choice(SNIPPETS).encode() + content[place:]


def damage(draw, path):
    """Damage a file, once to three times: its values if it can be parsed, or its bytes."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = path.read_bytes()
        if draw.random() < 0.6:
            with contextlib.suppress(Exception):
                content = _damaged_document(draw, path.suffix, content.decode())
                path.write_bytes(content.encode(errors="surrogatepass"))
                continue
        path.write_bytes(damaged_bytes(draw, content))


def _damaged_document(draw, suffix, text):
    if suffix == ".jsonl":
        lines = text.splitlines()
        place = draw.randrange(len(lines))
        lines[place] = json.dumps(damaged_value(draw, json.loads(lines[place])))
        return "\n".join(lines) + "\n"
    if suffix == ".json":
        return json.dumps(damaged_value(draw, json.loads(text)))
    if suffix in (".yaml", ".yml"):
        return yaml.safe_dump(damaged_value(draw, yaml.safe_load(text)), allow_unicode=True)
    raise ValueError(suffix)


def recipe(draw, folder):
    path = draw.choice(sorted((folder / "recipes").glob("*.yaml")))
    damage(draw, path)
    return [["check", str(path)]], None


def template(draw, folder):
    path = folder / "mine.yaml"
    path.write_text(TEMPLATE)
    damage(draw, path)
    return [["templates", "mine.yaml"], ["templates", "mine.yaml", "--row", "test.jsonl"]], None


def rows(draw, folder):
    damage(draw, folder / draw.choice(("train.jsonl", "test.jsonl")))
    path = "recipes/prompt_tuning.yaml"
    return [["templates", "question_answering/plain", "--row", "test.jsonl"], ["check", path]], None


def adapter(draw, folder):
    run = folder / "runs" / draw.choice(RUNS)
    damage(draw, run / draw.choice(("adapter_config.json", "adapter_config.json", "adapter_model.safetensors")))
    return [["predict", "--adapter", str(run), "--input", "one.jsonl", "--output", str(folder / "out.jsonl")]], run


def run_folder(draw, folder):
    run = folder / "runs" / draw.choice(RUNS)
    path = run / draw.choice(RUN_FILES)
    if path.is_file():
        damage(draw, path)
    return [["show", str(run)], ["report", str(run)], ["card", str(run)]], run


def checkpoint(draw, folder):
    run = folder / "runs" / "stopped_prompt_tuning"
    damage(draw, draw.choice(sorted(path for path in (run / "checkpoint-8").iterdir() if path.is_file())))
    flags = ["--output_dir", str(run), "--resume_from_checkpoint", "true"]
    return [["train", "recipes/stopped_prompt_tuning.yaml", *flags]], run


# Of each kind, the share of the cases: a checkpoint takes a second, a template milliseconds.
KINDS = {template: 40, rows: 15, recipe: 20, run_folder: 15, adapter: 8, checkpoint: 2}


def fuzz(folder, numbers, kinds=KINDS):
    """Run one case for each number in a folder, of kinds with their shares; return counts and what went wrong.

    Returns:
        Counts of the cases by kind and exit code, and the problems as texts, each of which names its case's number.
    """
    counts, problems = Counter(), []
    work = folder / "work"
    signal.signal(signal.SIGALRM, _hang)
    for number in numbers:
        draw = random.Random(number)
        kind = draw.choices(list(kinds), list(kinds.values()))[0]
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(FIXTURES, work)
        first = (work / "test.jsonl").read_text().splitlines()[0]
        (work / "one.jsonl").write_text(first + "\n")
        os.chdir(work)
        commands, writable = kind(draw, work)
        before = _digests(folder, writable)
        for words in commands:
            outcome, problem = _outcome(words)
            counts[f"{kind.__name__}: {outcome}"] += 1
            if problem:
                problems.append(f"case {number}: {kind.__name__}: {words[0]}: {outcome}\n{problem}")
        after = _digests(folder, writable)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        changed = [name for name in changed if name != "work/out.jsonl"]
        if changed:
            counts[f"{kind.__name__}: files changed"] += 1
            problems.append(f"case {number}: {kind.__name__}: changed {changed}")
    os.chdir(folder)
    return counts, problems


def _hang(*_):
    raise HangError


def _outcome(words):
    """Run a command; return its exit code, `traceback` or `hang`, and the text of what went wrong."""
    output = io.StringIO()
    signal.alarm(MAX_SECONDS)
    start = time.monotonic()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(words)
        if code not in (0, 1, 2):
            return f"exit code {code}", output.getvalue()[-500:]
        return f"exit code {code}", None
    except SystemExit as error:
        return f"exit code {error.code}", None
    except HangError:
        return "hang", f"after {time.monotonic() - start:.0f} s\n{traceback.format_exc()[-2000:]}"
    except BaseException:
        return "traceback", traceback.format_exc()
    finally:
        signal.alarm(0)


def _digests(folder, writable):
    """Return a digest of every file that a command may not change."""
    digests = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if writable is None or not path.is_relative_to(writable):
                digests[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests
