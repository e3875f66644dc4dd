"""The package keeps the figures of plain style; `python tests/helpers/style_figures.py` prints the places."""

import pytest
from helpers.paths import ROOT
from helpers.style_figures import measure

LIMITS = {
    "comments that open with a pronoun": 0,
    "walrus operators": 1,
    "functions with more than five positional arguments": 0,
    "public functions and classes without docstring": 0,
}
COMPREHENSIONS_PER_1000_LINES = 20


@pytest.fixture(scope="module")
def figures():
    return measure([ROOT / "prompt_tuning"])


@pytest.mark.parametrize("figure", LIMITS)
def test_the_package_keeps_a_figure_within_its_limit(figure, figures):
    assert figures.count(figure) <= LIMITS[figure], figures.places[figure]


def test_the_package_has_few_comprehensions(figures):
    assert figures.comprehensions_per_1000_lines <= COMPREHENSIONS_PER_1000_LINES


def test_the_figures_count_what_they_name(tmp_path):
    module = tmp_path / "module.py"
    module.write_text("# as here\ndef f(a, b, c, d, e, g):\n    return [x for x in a if (y := x)]\n")
    figures = measure([module])
    assert all(figures.count(figure) == 1 for figure in LIMITS)
    assert figures.comprehensions_per_1000_lines == pytest.approx(1000 / 3)
