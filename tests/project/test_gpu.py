"""`make gpu` starts at the first try: its code runs here on a CPU and on a pretended GPU, and a failure is written."""

import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.benchmarks import load_benchmark
from helpers.pretend_cuda import pretended_cuda
from helpers.real_cuda import IS_REAL
from transformers import training_args

pytestmark = pytest.mark.filterwarnings("ignore")  # The benchmarks ignore warnings, since plain PEFT gives some.
SCRIPT = """
import sys, time
print("a table", flush=True)
if sys.argv[1] == "steps":
    raise ValueError("no kernel")
if sys.argv[1] == "generation":
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def gpu():
    return load_benchmark("gpu")


@pytest.fixture
def fake_script(gpu, tmp_path, monkeypatch):
    """Let each section be a process of a script that fails in one section and hangs in another."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results.md")
    monkeypatch.setitem(gpu.SECTIONS, "generation", replace(gpu.SECTIONS["generation"], budget=1))
    return tmp_path / "results.md"


def tables(text):
    """Return the rows of numbers in the tables of a text."""
    return [line for line in text.splitlines() if line.startswith("|") and re.search(r"\| [\d.]+ ", line)]


def test_the_dry_run_prints_every_section(gpu, capsys):
    gpu.main(["--dry_run"])
    printed = capsys.readouterr().out
    assert "figures say nothing" in printed
    assert re.search(r"TFLOP/s\n`pytest .*1 passed", printed)
    ways = [line.split("|")[1].strip() for line in tables(printed)]
    assert ways[:12] == ["engine", "PEFT", "LoRA, r=8"] * 4
    assert ways[12:16] == ["engine", "PEFT", "PEFT, no cache", "base model, no prompt"]
    assert len(ways) == 26  # The last ten are kernels.
    losses = [float(line.split("|")[-2]) for line in tables(printed)[:12]]
    assert losses[::3] == pytest.approx(losses[1::3], abs=0.01)  # The engine's loss is PEFT's.


@pytest.mark.skipif(IS_REAL, reason="there is a real GPU: make gpu runs there")
def test_steps_and_generation_run_on_a_pretended_gpu(gpu, monkeypatch, capsys):
    card = SimpleNamespace(name="H200", total_memory=2**37, major=9, minor=0)
    for name, value in (
        ("get_device_properties", card), ("reset_peak_memory_stats", None), ("memory_allocated", 2**30),
        ("max_memory_allocated", 2**31), ("empty_cache", None),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    sizes = replace(gpu.TINY, device="cuda:0", prompts=(3,), prompt=3)
    with pretended_cuda(monkeypatch, "cuda:0"):
        for section in (gpu.machine, gpu.steps, gpu.generation):
            section(sizes, time.monotonic())
    printed = capsys.readouterr().out
    assert "H200, 128 GiB, compute capability 9.0" in printed
    assert len(tables(printed)) == 10
    assert printed.count(" 1.00 ") >= 10  # The memory that each call adds.


def test_a_section_that_fails_or_hangs_is_written_and_the_others_run(gpu, fake_script, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 1
    assert "ValueError" in capsys.readouterr().err
    sections = dict(
        re.findall(r"(?ms)^`python benchmarks/gpu.py (\w+)`.*?:\n\n(.+?)(?=\n\n## |\n\Z)", fake_script.read_text())
    )
    assert sections == dict.fromkeys(gpu.SECTIONS, "a table") | {
        "steps": "a table\n\nFailed: `ValueError: no kernel`",
        "generation": "a table\n\nFailed: `it did not end within 1 s`",
    }


def test_the_sections_take_at_most_nine_minutes(gpu):
    assert sum(section.budget for section in gpu.SECTIONS.values()) <= 540


def test_failed_device_tests_are_counted_and_named(gpu, tmp_path, capsys):
    (tmp_path / "test_some.py").write_text(
        "def test_one():\n    pass\n\ndef test_two():\n    assert False, 'no kernel'\n"
    )
    tests = ("--noconftest", str(tmp_path / "test_some.py"))
    gpu.device_tests(replace(gpu.TINY, tests=tests), time.monotonic() + 600)
    printed = capsys.readouterr().out
    assert "1 failed, 1 passed" in printed
    assert re.search(r"(?m)^FAILED .*test_two", printed)


def test_a_call_that_needs_too_much_memory_is_written_and_the_others_are_timed(gpu):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    def unfit():
        raise RuntimeError("No available kernel.\nMore")

    times, memory = gpu.measured({"fits": lambda: None, "full": full, "unfit": unfit}, gpu.TINY, time.monotonic())
    assert list(times) == ["fits"]
    assert memory == {"fits": "0.00", "full": "out of memory", "unfit": "failed: No available kernel."}


def test_without_a_gpu_nothing_is_written(gpu, fake_script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main([])
    assert not fake_script.exists()
