"""Give the package index a README whose links lead somewhere. pyproject.toml has everything else."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

FOLDER = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)\s]+)\)")


def readme() -> str:
    """Return README.md with links into the repository of [project.urls], or without links as long as none is set."""
    settings = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    repository = settings["project"].get("urls", {}).get("Repository")
    if repository is None:
        return LINK.sub(lambda link: "" if link[1] else link[2], text)
    return LINK.sub(
        lambda link: f"{link[1]}[{link[2]}]({repository}/{'raw' if link[1] else 'blob'}/HEAD/{link[3]})", text
    )


setup(long_description=readme(), long_description_content_type="text/markdown")
