"""The notebook runs from its first cell to its last, on a tiny model."""

import pytest
from helpers.paths import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "first_prompt.py"


def test_the_notebook_goes_from_a_data_frame_to_a_chart(model_folders, tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib", reason="charts need matplotlib: `pip install .[plot]`")
    matplotlib.use("agg")
    text = NOTEBOOK.read_text(encoding="utf-8")
    changes = {
        'MODEL = "models/SmolLM2-135M-Instruct"': f"MODEL = {str(model_folders['llama'])!r}",
        "MAX_STEPS = 40": "MAX_STEPS = 4",
        '"init_demonstrations": 2': '"init_demonstrations": 1',  # The tiny model has 512 positions.
    }
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    variables = {}
    exec(compile(text, NOTEBOOK, "exec"), variables)
    assert variables["run"].results["rows"] == 6 and len(variables["log"].dropna(subset="loss")) == 2
    for name in ("loss.png", "scores.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
