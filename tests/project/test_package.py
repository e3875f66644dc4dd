"""The wheel and the sdist hold the package with its templates and recipes, and nothing else of this repository."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from helpers.paths import ROOT

RELATIVE_LINK = re.compile(r"\]\((?!https?:)")
BUILD = "from setuptools import build_meta; build_meta.build_{}({!r})"


def tracked_files():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not done.stdout:  # The folder of `make test-wheel` is in a repository, and ignored by it.
        pytest.skip("no file of this folder is in a git repository, whose list of files the test compares")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def build(kind, source, output):
    subprocess.run(
        [sys.executable, "-c", BUILD.format(kind, str(output))], cwd=source, capture_output=True, check=True
    )
    (built,) = [path for path in output.iterdir() if path.suffix == (".whl" if kind == "wheel" else ".gz")]
    return built


def test_the_wheel_and_the_sdist_hold_the_same_package(tmp_path):
    source = tmp_path / "source"
    tracked = tracked_files()
    for name in [*tracked, "prompt_tuning/recipe/library"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    for name in ("runs/mine/results.json", "models/mine/config.json", ".venv/x.py", "prompt_tuning/recipe/mine.jsonl"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("{}")
    direct = build("wheel", source, tmp_path)
    with tarfile.open(build("sdist", source, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(direct) as one, zipfile.ZipFile(build("wheel", unpacked, unpacked)) as two:
        assert {name: one.read(name) for name in one.namelist()} == {name: two.read(name) for name in two.namelist()}
        names = one.namelist()
        metadata = one.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    package = {name for name in tracked if name.startswith("prompt_tuning/")}
    library = {f"prompt_tuning/recipe/library/{name[8:]}" for name in tracked if re.match("recipes/.+/", name)}
    assert {name for name in names if ".dist-info/" not in name} == package | library
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "\nLicense-Expression: Apache-2.0\n" in metadata and "\nClassifier: Typing :: Typed\n" in metadata
    assert "# prompt_tuning\n" in metadata and RELATIVE_LINK.search(metadata) is None
    folders = {path.name for path in unpacked.iterdir() if path.is_dir()}
    assert folders - {"build"} == {"prompt_tuning", "prompt_tuning.egg-info"}


def test_links_of_the_readme_lead_into_the_repository_of_the_package(tmp_path):
    for name in ("README.md", "LICENSE", "setup.py", "pyproject.toml", "prompt_tuning/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    with (tmp_path / "pyproject.toml").open("a") as file:
        file.write('[project.urls]\nRepository = "https://example.org/us/it"\n')
    with zipfile.ZipFile(build("wheel", tmp_path, tmp_path / "built")) as wheel:
        metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
    assert "](https://example.org/us/it/raw/HEAD/docs/images/try.png)" in metadata
    assert "[SECURITY.md](https://example.org/us/it/blob/HEAD/SECURITY.md)" in metadata
    assert RELATIVE_LINK.search(metadata) is None
