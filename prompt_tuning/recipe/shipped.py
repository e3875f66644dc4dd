"""The recipes of this package: their names, what each does, and copies of them.

`library` is a link to the repository's folder `recipes`; a wheel holds the files themselves.
"""

from __future__ import annotations

import re
from pathlib import Path

from prompt_tuning.errors import RecipeError
from prompt_tuning.support.files import write_text
from prompt_tuning.support.text import did_you_mean

LIBRARY = Path(__file__).parent / "library"
FOLDER = "recipes"
"""The folder by which the recipes of this package name their files."""

_MENTIONED = re.compile(rf"(?<![\w/.-]){FOLDER}/(?=\w)")
_FOLDER_NAME = re.compile(r"(?!-)[\w./ -]+")


def shipped_recipes() -> dict[str, Path]:
    """Return the files of all recipes, comparisons and launch configurations by name, such as `quickstart/qa`."""
    files = sorted(LIBRARY.glob("*/*.yaml"))
    return {file.relative_to(LIBRARY).with_suffix("").as_posix(): file for file in files}


def description(recipe: Path) -> str:
    """Return the first sentence of the comment that opens a recipe."""
    lines = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# "))
    return " ".join(lines).partition(". ")[0].rstrip(".") + "."


def copy_recipe(name: str, folder: str = FOLDER) -> dict[str, bool]:
    """Copy a recipe with the templates, rows and recipes that it names, which name each other by the new folder.

    Args:
        name: as `shipped_recipes` has it.
        folder: takes the place of `recipes`. A relative one is looked for where a command starts, as all paths of
            recipes are.

    Returns:
        The files, the recipe first, and whether each was written. A file that was there with the same text was not.

    Raises:
        RecipeError: there is no such recipe, a folder's name would need quotes in a recipe, or a file is there with
            another text. Nothing is written then.
    """
    shipped = shipped_recipes()
    if name not in shipped:
        hint = did_you_mean(name, shipped, most=3, cutoff=0.3) or "Name another one."
        raise RecipeError(f"recipe {name}: not a shipped recipe. {hint} `prompt-tuning recipes` lists all.")
    folder = folder.rstrip("/") or "/"
    if not _FOLDER_NAME.fullmatch(folder):
        raise RecipeError(f"folder {folder!r}: recipes cannot name it. Use letters, digits and the characters ._-/")
    texts = {}
    for file in _needed_files(shipped[name]):
        text = file.read_text(encoding="utf-8")
        if file.suffix != ".jsonl":
            text = _MENTIONED.sub(lambda _: f"{folder}/", text)
        texts[Path(folder, file.relative_to(LIBRARY))] = text
    is_new = {path: not path.exists() for path in texts}
    for path, text in texts.items():
        if not is_new[path] and not (path.is_file() and path.read_bytes() == text.encode()):
            raise RecipeError(f"{path}: it is there already, with another text. Name another folder, or move it.")
    for path, text in texts.items():
        if is_new[path]:
            write_text(path, text)
    return {str(path): is_new[path] for path in texts}


def _needed_files(recipe: Path) -> list[Path]:
    """Return a recipe and the files that its settings name. Rows come with the page beside them, for their licence."""
    files = [recipe]
    for file in files:  # It grows: a named recipe names its template.
        if file.suffix == ".jsonl":
            named = sorted(file.parent.glob("*.md"))
        else:
            settings = re.sub(r"(?m)^#.*", "", file.read_text(encoding="utf-8"))
            paths = re.findall(_MENTIONED.pattern + r"([\w./-]+\w)", settings)
            named = [LIBRARY / path for path in paths]
        files += [path for path in dict.fromkeys(named) if path not in files]
    return files
