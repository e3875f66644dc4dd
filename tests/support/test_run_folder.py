"""The file names of a run."""

import ast

from helpers.paths import ROOT

from prompt_tuning.support.run_folder import RunFolder

PACKAGE = ROOT / "prompt_tuning"
NAMES = {value for name, value in vars(RunFolder).items() if name.isupper() and isinstance(value, str)}
# In this place the word is not a file name of a run, but the name of an argument.
EXCEPTIONS = {"metrics/references.py": RunFolder.PREDICTIONS}


def spelled_names(path):
    """Return the file names of a run among the strings of a module."""
    strings = [node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if is_text(node)]
    return NAMES & {*strings, *(string.rpartition("/")[2] for string in strings)}


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_no_module_spells_a_file_name_of_a_run():
    """Compare whole strings, because a docstring, a help text or a message may mention a name."""
    spelled = {}
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).as_posix()
        names = spelled_names(path) - {EXCEPTIONS.get(module)}
        if names and module != "support/run_folder.py":
            spelled[module] = names
    assert spelled == {}
