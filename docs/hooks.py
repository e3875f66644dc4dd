"""Give the site pages made from the code, and the files of the repository to which pages link (a hook of mkdocs)."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

import prompt_tuning
from prompt_tuning.cli.main import COMMANDS
from prompt_tuning.cli.parsing import CommandParser
from prompt_tuning.recipe.schema import TEXT, recipe_schema

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OUTSIDE = "repository"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name headings as GitHub names them, so that one link holds in both places."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages made from the code, and every file outside of docs that a page names."""
    made = {"settings": settings_page(), "command-line": commands_page(), "python": python_page()}
    for name, text in made.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    pages = [DOCS / file.src_uri for file in files.documentation_pages() if file.generated_by is None]
    for path in _files_outside(pages):
        files.append(File.generated(config, f"{OUTSIDE}/{path.relative_to(ROOT)}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave docs, or come from outside of it, into links within the site."""
    source = _path(page.file.src_uri)

    def within_site(match: re.Match[str]) -> str:
        target = _uri(Path(os.path.normpath(source.parent / match[1])))
        return os.path.relpath(target, os.path.dirname(page.file.src_uri) or ".")

    return LINK.sub(within_site, markdown)


def settings_page() -> str:
    """Return a table of every setting of a recipe: its values, its default and its help text."""
    lines = ["# All settings", "", "Every setting is a key of a recipe and a flag of a command.", ""]
    lines += ["| setting | values | default | meaning |", "|---|---|---|---|"]
    for name, schema in recipe_schema()["properties"].items():
        default = schema.get("default")
        shown = "" if default is None else f"`{default}`"
        lines.append(f"| `{name}` | {_values(schema)} | {shown} | {_cell(schema['description'])} |")
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Return what --help prints for every command."""
    parser = argparse.ArgumentParser(prog="prompt-tuning")
    commands = parser.add_subparsers(parser_class=CommandParser)
    for command in COMMANDS:
        command.add_parser(commands)
    os.environ["COLUMNS"] = "110"
    parts = [f"## {name}\n\n```text\n{each.format_help()}```\n" for name, each in commands.choices.items()]
    return "# Help of every command\n\nThis is what `--help` prints.\n\n" + "\n".join(parts)


def python_page() -> str:
    """Return a page that names every public name, for mkdocstrings."""
    names = [name for name in prompt_tuning.__all__ if not name.startswith("_")]
    parts = [f"::: prompt_tuning.{name}\n" for name in names]
    return "# Python\n\nThe names that `import prompt_tuning` offers.\n\n" + "\n".join(parts)


def _values(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    names = [name for name in names if name not in TEXT] + ["text"] if set(TEXT) <= {*names} else names
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {schema[key]}" for key, word in bounds.items() if key in schema]
    return ", ".join([" or ".join(names), *limits])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _files_outside(pages: list[Path]) -> list[Path]:
    """Return the files outside of docs to which these pages link, and the pages among them."""
    found: list[Path] = []
    for page in (waiting := [*pages]):
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            path = Path(os.path.normpath(page.parent / target))
            if path.is_file() and not path.is_relative_to(DOCS) and path not in found:
                found.append(path)
                waiting += [path] if path.suffix == ".md" else []
    return found


def _path(uri: str) -> Path:
    return ROOT / uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else DOCS / uri


def _uri(path: Path) -> str:
    return str(path.relative_to(DOCS) if path.is_relative_to(DOCS) else Path(OUTSIDE) / path.relative_to(ROOT))
