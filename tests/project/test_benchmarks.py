"""Every benchmark imports what it needs from the current code, and `make benchmark` names benchmarks that exist."""

import pytest
from helpers.benchmarks import load_benchmark
from helpers.paths import ROOT

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_can_be_imported(name):
    module = load_benchmark(name)
    assert name == "common" or callable(module.main)


def test_results_have_a_part_of_each_benchmark_that_is_run():
    benchmarks = load_benchmark("run").BENCHMARKS
    results = (ROOT / "benchmarks" / "results.md").read_text(encoding="utf-8")
    assert [name for name in benchmarks if f"`python benchmarks/{name}.py`" not in results] == []


def test_an_unknown_benchmark_is_refused(monkeypatch, capsys):
    run = load_benchmark("run")
    monkeypatch.setattr("sys.argv", ["run.py", "nothing"])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    assert "no benchmark nothing" in capsys.readouterr().err
