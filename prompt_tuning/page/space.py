"""The files of a Space of the hub that shows the page of a pushed run."""

from __future__ import annotations

import platform
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement

import prompt_tuning
from prompt_tuning.recipe.shipped import LIBRARY
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.yaml_files import to_yaml

APP = '''"""Show what the prompt of {name} does."""

from prompt_tuning.page.blocks import APPEARANCE, PRIVATE, build_page
from prompt_tuning.page.trial import Trial

build_page(Trial.load([{repo_id!r}])).launch(**APPEARANCE, **PRIVATE)
'''
README = """---
{header}---

# What the prompt of {repo_id} does

A row is answered by the hard prompt, by the trained prompt and, if the recipe holds it, by the text that the prompt
started from. `app.py` loads [{repo_id}](https://huggingface.co/{repo_id}) with its base model; the folder
`prompt_tuning` is the package. If the run or its base model is private, give the Space a secret
`HF_TOKEN` that may read them.
"""


def space_files(repo_id: str) -> dict[str, bytes | Path]:
    """Return the files of a Space by their names: app.py, requirements.txt, README.md and this package.

    Args:
        repo_id: the run on the hub, `user/name` or `user/name@revision`.
    """
    name = repo_id.partition("@")[0]
    header = {
        "title": f"Prompt of {name.split('/')[-1]}"[:60],
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "models": [name],
    }
    texts = {
        "app.py": APP.format(name=name, repo_id=repo_id),
        "requirements.txt": "".join(f"{line}\n" for line in _requirements()),
        RunFolder.CARD: README.format(header=to_yaml(header), repo_id=name),
    }
    files: dict[str, bytes | Path] = {name: text.encode() for name, text in texts.items()}
    package = Path(prompt_tuning.__file__).parent
    for path in sorted(package.rglob("*")):
        is_read = path.is_file() and path.suffix in (".py", ".yaml", ".json", ".md", ".html", ".typed")
        if is_read and LIBRARY not in path.parents:  # The page reads no recipe of this package.
            files[path.relative_to(package.parent).as_posix()] = path
    return files


def _requirements() -> list[str]:
    """Return what this package needs, without extras; the hub installs gradio itself."""
    lines = []
    for line in requires("prompt-tuning") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            lines.append(line)
    return lines
