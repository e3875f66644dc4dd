"""Imports go one way: a package imports only from itself and from packages above it, and no modules form a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

from helpers.paths import ROOT

import prompt_tuning

ORDER = (
    "errors", "support", "metrics", "templates", "hub", "arguments", "recipe", "data", "encoding", "engine", "models",
    "reports", "training", "runs", "studies", "api", "page", "cli",
)  # fmt: skip
# The trainer pushes and writes its card, so that these two may be imported when it does.
IN_FUNCTIONS = {
    ("training.trainer", "hub.upload"),
    ("training.trainer", "reports.model_card"),
}


def imported_names(node):
    """Return the modules that an import names. `from prompt_tuning import runs` names prompt_tuning.runs."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module == "prompt_tuning":
        return [f"prompt_tuning.{alias.name}" for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) else []


def imports():
    """Yield (module, imported module), also those under TYPE_CHECKING and within functions."""
    package = ROOT / "prompt_tuning"
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import"
            for name in imported_names(node):
                if name.startswith("prompt_tuning.") and name != "prompt_tuning.__version__":
                    yield module, name.removeprefix("prompt_tuning.")


def test_imports_go_one_way_and_in_no_circle():
    graph = {}
    wrong = []
    for module, imported in imports():
        if module in ("__init__", "__main__"):
            continue
        if not module.endswith(".__init__"):
            graph.setdefault(module, set()).add(imported)
        package, imported_package = module.split(".")[0], imported.split(".")[0]
        if imported_package not in ORDER[: ORDER.index(package) + 1]:
            wrong.append((module, imported))
    assert not wrong
    assert len(list(TopologicalSorter(graph).static_order())) > 50  # A circle raises CycleError.


def test_imports_within_functions_are_the_two_of_the_trainer():
    """Exclude the command line, which imports a command's work within a function so that --help answers at once."""
    package = ROOT / "prompt_tuning"
    pairs = set()
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        if module.startswith("cli."):
            continue
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for node in ast.walk(function):
                    for name in imported_names(node):
                        if name.startswith("prompt_tuning"):
                            pairs.add((module, name.removeprefix("prompt_tuning.")))
    assert pairs == IN_FUNCTIONS


def test_the_trainer_loads_no_recipe_card_hub_or_command():
    code = "import sys; from prompt_tuning import PromptTuningTrainer; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[1] for name in run.stdout.split() if name.startswith("prompt_tuning.")}
    assert loaded.isdisjoint({"recipe", "reports", "hub", "cli", "runs", "studies", "templates", "data"})


def test_public_names_are_literal_and_listed():
    assert dir(prompt_tuning) == sorted(prompt_tuning.__all__)
    assert all(getattr(prompt_tuning, name) is not None for name in prompt_tuning.__all__)
    assert (ROOT / "prompt_tuning" / "py.typed").is_file()
