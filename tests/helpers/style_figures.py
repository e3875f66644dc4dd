"""Print the figures by which the package's style is measured.

    python tests/helpers/style_figures.py [PATH ...]

Without a path it measures prompt_tuning/. After the figures it prints every place that tests/project/test_style.py
objects to.
"""

import ast
import io
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRONOUNS = ("which", "of", "as", "where", "since", "whose")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAX_ARGUMENTS = 5
LONG_MODULE = 400
LONG_FUNCTION = 60
VERBS = """
add allow apply ask assemble attach average build call check choose clean clear close collect combine compare compile
complete compute configure continue convert copy count create cut decode define delete dequantize describe do download
draw drop encode end ensure estimate evaluate exclude expand explain export extend fail fill find fit format gather
generate get give group guard handle hash hide hold ignore import infer insert inspect install join keep let limit list
load lock log look make mark mask match measure merge move name normalise normalize note open order pack pad parse
patch pick plan point predict prepare print pull push put quote raise rank read record reduce refuse register release
remove rename render repeat replace report request require resolve restore return round run sample save say scale score
search see select send set shorten show shuffle skip smooth sort split start stop store strip sum swap take tell test
time track train translate trim truncate try turn undo unfold unload update upload use validate wait warn wrap write
yield
"""


@dataclass
class Figures:
    """Hold the counts over modules, and the places of those that have to be few."""

    lines: int = 0
    comprehensions: int = 0
    docstrings: int = 0
    imperative_docstrings: int = 0
    places: dict[str, list[str]] = field(
        default_factory=lambda: {
            "comments that open with a pronoun": [],
            "walrus operators": [],
            "functions with more than five positional arguments": [],
            "public functions and classes without docstring": [],
            f"modules over {LONG_MODULE} lines": [],
            f"functions over {LONG_FUNCTION} lines": [],
        }
    )

    @property
    def comprehensions_per_1000_lines(self) -> float:
        """Return the number of comprehensions and generator expressions in 1,000 lines."""
        return 1000 * self.comprehensions / max(self.lines, 1)

    def count(self, figure: str) -> int:
        """Return the number of places that a figure counts."""
        return len(self.places[figure])


def measure(paths: list[Path]) -> Figures:
    """Measure the modules below some folders or files."""
    figures = Figures()
    for path in paths:
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            _measure_module(module, figures)
    return figures


def _measure_module(module: Path, figures: Figures) -> None:
    text = module.read_text(encoding="utf-8")
    num_lines = len(text.splitlines())
    figures.lines += num_lines
    if num_lines > LONG_MODULE:
        figures.places[f"modules over {LONG_MODULE} lines"].append(f"{module}: {num_lines}")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        word = token.string.lstrip("# ").split(" ")[0].lower().rstrip(",")
        if token.type == tokenize.COMMENT and word in PRONOUNS:
            place = f"{module}:{token.start[0]}: {token.string}"
            figures.places["comments that open with a pronoun"].append(place)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS):
            figures.comprehensions += 1
        elif isinstance(node, ast.NamedExpr):
            figures.places["walrus operators"].append(f"{module}:{node.lineno}")
        elif isinstance(node, FUNCTIONS):
            _measure_function(node, module, figures)
            _measure_docstring(node, figures)
    _find_undocumented(tree.body, module, figures)


def _measure_function(function: ast.FunctionDef | ast.AsyncFunctionDef, module: Path, figures: Figures) -> None:
    place = f"{module}:{function.lineno} {function.name}"
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    if names and names[0] in ("self", "cls"):
        names = names[1:]
    if len(names) > MAX_ARGUMENTS:
        figures.places["functions with more than five positional arguments"].append(place)
    if function.end_lineno - function.lineno >= LONG_FUNCTION:
        figures.places[f"functions over {LONG_FUNCTION} lines"].append(place)


def _measure_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, figures: Figures) -> None:
    """Count docstrings of functions, and those that open with an imperative verb."""
    docstring = ast.get_docstring(node)
    if docstring:
        figures.docstrings += 1
        figures.imperative_docstrings += docstring.split()[0].lower().rstrip(",:") in VERBS.split()


def _find_undocumented(body: list[ast.stmt], module: Path, figures: Figures) -> None:
    for node in body:
        if not isinstance(node, (ast.ClassDef, *FUNCTIONS)) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            place = f"{module}:{node.lineno} {node.name}"
            figures.places["public functions and classes without docstring"].append(place)
        if isinstance(node, ast.ClassDef):
            _find_undocumented(node.body, module, figures)


def main() -> None:
    """Print the figures of the paths on the command line."""
    figures = measure([Path(name) for name in sys.argv[1:]] or [ROOT / "prompt_tuning"])
    imperative = 100 * figures.imperative_docstrings / max(figures.docstrings, 1)
    print(f"lines: {figures.lines:,}")
    print(f"comprehensions per 1,000 lines: {figures.comprehensions_per_1000_lines:.1f}")
    print(f"docstrings of functions that open with an imperative verb: {imperative:.0f} %")
    for figure, places in figures.places.items():
        print(f"{figure}: {len(places)}")
    for figure, places in figures.places.items():
        for place in places:
            print(f"  {figure}: {place}")


if __name__ == "__main__":
    main()
