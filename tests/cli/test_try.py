"""The command try: what is wrong is said in one line, before a model loads."""

import importlib.util
import socket

import pytest
from helpers.models import forbid_model_loading

from prompt_tuning.cli.main import main


@pytest.fixture(autouse=True)
def with_gradio(monkeypatch):
    """Let the command find the package gradio, which these tests do not need."""
    forbid_model_loading(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def test_a_port_in_use_is_named(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["try", str(tmp_path), "--port", str(port)]) == 2
    assert (
        capsys.readouterr().err
        == f"error: --port {port}: Address already in use on 127.0.0.1. Name another --port, or 0.\n"
    )


def test_a_folder_that_is_no_run_and_an_address_of_others_are_named(tmp_path, capsys):
    assert main(["try", str(tmp_path / "gone"), "--port", "0"]) == 1
    assert f"{tmp_path / 'gone'}: no adapter_config.json there" in capsys.readouterr().err
    assert main(["try", str(tmp_path), "--host", "no such host", "--port", "0"]) == 2
    assert "--host no such host: no such address" in capsys.readouterr().err


def test_another_address_than_loopback_is_said_loudly(tmp_path, capsys):
    assert main(["try", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]) == 1
    assert "WARNING: --host 0.0.0.0: everybody who reaches this machine" in capsys.readouterr().err


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["try", str(tmp_path)]) == 1
    assert (
        capsys.readouterr().err == "error: try: the page is made by the package gradio. Install prompt-tuning[try].\n"
    )
