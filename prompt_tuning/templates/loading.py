"""Find the fields of templates by name: in this package, in a file, or in a folder of files."""

from __future__ import annotations

import difflib
import functools
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_tuning.errors import TemplateError
from prompt_tuning.support.text import did_you_mean, listed
from prompt_tuning.support.yaml_files import read_yaml
from prompt_tuning.templates.promptsource import convert

LIBRARY = Path(__file__).parent / "library"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Entry:
    """One template of a file, not yet checked.

    Args:
        name: the name that `Template.load` takes.
        values: what the file holds under that name.
        is_promptsource: `values` is an entry of a file of promptsource.
    """

    name: str
    values: Any
    is_promptsource: bool = False

    def fields(self) -> Any:
        """Return the fields of a template.

        Raises:
            TemplateError: promptsource's entry cannot be converted.
        """
        return convert(self.values, self.name) if self.is_promptsource else self.values


@functools.cache
def shipped_templates() -> dict[str, dict[str, Any]]:
    """Return the fields of every template in this package by its name, `<task>/<name>`."""
    shipped = {}
    for file in sorted(LIBRARY.glob("*.yaml")):
        task = file.name.partition(".")[0]  # The file question_answering.zh.yaml has templates in Chinese.
        for name, values in read_yaml(file, TemplateError).items():
            shipped[f"{task}/{name}"] = values
    return shipped


def language_of_template(name: str) -> str:
    """Return the language of the words of a shipped template: that of Chinese ones opens their names.

    >>> language_of_template("summarization/zh_plain"), language_of_template("summarization/plain")
    ('zh', 'en')
    """
    return "zh" if "/zh_" in name else "en"


def find_entry(name: str) -> Entry:
    """Return the template of this name.

    Args:
        name: a shipped template (`question_answering/plain`), a file with one template (`mine.yaml`), or one of
            several in a file (`mine.yaml:short`).

    Raises:
        TemplateError: there is no such template, or the file is not YAML.
    """
    in_file = re.fullmatch(r"(.+?\.ya?ml)(?::(.+))?", name)
    if in_file:
        return _entry_of_file(Path(in_file[1]), in_file[2])
    shipped = shipped_templates()
    if name not in shipped:
        hint = did_you_mean(name, shipped, most=3, cutoff=0.3) or "The name of a file must end in .yaml."
        raise TemplateError(
            f"template {name}: not a shipped template. {hint} `prompt-tuning templates` lists all {len(shipped)}."
        )
    return Entry(name, shipped[name])


def find_entries(where: str | Path | None) -> tuple[list[Entry], dict[str, str]]:
    """Return all templates of a task, a file or a folder, and why each file that is not YAML cannot be read.

    Args:
        where: a shipped template, a task (all that are shipped for it), a file, or a folder, searched for YAML files
            with its subfolders; by default all shipped templates.

    Raises:
        TemplateError: there is no template of that name, or the one file is not YAML.
    """
    shipped = shipped_templates()
    entries = []
    for name, values in shipped.items():
        if where is None or f"{name}/".startswith(f"{where}/"):
            entries.append(Entry(name, values))
    if entries or where is None:
        return entries, {}
    path = Path(where)
    if path.is_file() and path.suffix in SUFFIXES:
        return _entries_of_file(path), {}
    if not path.is_dir():
        return [find_entry(str(where))], {}
    return _entries_of_folder(path)


def describe(values: Any) -> str:
    """Return the keys of a mapping, or what else it is, for a message."""
    if not values:
        return "nothing"
    if not isinstance(values, dict):
        return "a list" if isinstance(values, list) else "one value"
    return listed([*values])


def _entries_of_folder(path: Path) -> tuple[list[Entry], dict[str, str]]:
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise TemplateError(f"{path}: no .yaml file in this folder. Name a folder that holds templates.")
    entries = []
    unreadable = {}
    for file in files:
        try:
            entries += _entries_of_file(file)
        except TemplateError as error:
            unreadable[str(file)] = str(error)
    return entries, unreadable


def _entry_of_file(path: Path, name: str | None) -> Entry:
    """Return one template of a file; the only one if `name` is None."""
    if not path.is_file():
        raise TemplateError(f"template {path}: no such file (looked in {Path.cwd()}). Name another file.")
    entries = {entry.name: entry for entry in _entries_of_file(path)}
    if name is None and len(entries) == 1:
        return next(iter(entries.values()))
    full_name = str(path) if name is None else f"{path}:{name}"
    if full_name in entries:
        return entries[full_name]
    names = {entry.removeprefix(f"{path}:"): entry for entry in entries}
    nearest = list(dict.fromkeys([*difflib.get_close_matches(name or "", names, cutoff=0.3), *names]))
    raise TemplateError(
        f"template {full_name}: the file holds {len(names)} ({listed(nearest)}). Name one, such as {names[nearest[0]]}"
    )


def _entries_of_file(path: Path) -> list[Entry]:
    values = read_yaml(path, TemplateError)
    if isinstance(values, dict) and {"dataset", "templates"} <= set(values):
        return _entries_of_promptsource(path, values["templates"])
    if isinstance(values, dict) and values and all(isinstance(value, dict) for value in values.values()):
        return [Entry(f"{path}:{name}", fields) for name, fields in values.items()]
    return [Entry(str(path), values)]


def _entries_of_promptsource(path: Path, templates: Any) -> list[Entry]:
    """Return the entries under their own names, or under their ids if two share a name."""
    if not isinstance(templates, dict) or not templates:
        raise TemplateError(
            f"template {path}: expected templates by id under the key templates, found {describe(templates)}. Name a "
            "file of promptsource."
        )
    names = {}
    for key, values in templates.items():
        names[key] = str((isinstance(values, dict) and values.get("name")) or key)
    counts = Counter(names.values())
    entries = []
    for key, values in templates.items():
        name = names[key] if counts[names[key]] == 1 else key
        entries.append(Entry(f"{path}:{name}", values, is_promptsource=True))
    return entries
