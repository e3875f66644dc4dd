"""Run modules as `python -m` does, in forks of a process that has imported the libraries once.

An import of torch, transformers and PEFT takes seconds, and a fork some milliseconds.
"""

import importlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from helpers.paths import ROOT

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["prompt_tuning.runs.train", "prompt_tuning.runs.push", "prompt_tuning.runs.predict"])


@dataclass
class Fork:
    """Hold a started module and the folder of its output and errors."""

    process: multiprocessing.Process
    streams: tempfile.TemporaryDirectory

    def wait(self, timeout=600):
        """Return the exit code, the output and the errors, as subprocess.run does."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        output, errors = ((Path(self.streams.name) / name).read_text() for name in ("1", "2"))
        self.streams.cleanup()
        return subprocess.CompletedProcess(self.process.name, self.process.exitcode, output, errors)


def start(module, *words, folder=ROOT / "tests", **environment):
    """Start a module with these words as arguments; its environment is this process's and the keywords."""
    streams = tempfile.TemporaryDirectory()
    variables = dict(os.environ) | environment
    process = PROCESSES.Process(
        target=_run, args=(module, [str(word) for word in words], folder, streams.name, variables)
    )
    process.start()
    return Fork(process, streams)


def run(module, *words, **settings):
    """Run a module to its end, and return its exit code, output and errors."""
    return start(module, *words, **settings).wait()


def run_in_two(module, *words, hosts=1, **settings):
    """Run a module in two processes, as torchrun starts them on one host or on two, and return both outcomes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": str(2 // hosts),
    }
    forks = []
    for rank in (0, 1):
        forks.append(start(module, *words, RANK=str(rank), LOCAL_RANK=str(rank // hosts), **launch, **settings))
    return [fork.wait() for fork in forks]


def _run(module, words, folder, streams, variables):
    for number in (1, 2):
        os.dup2(os.open(f"{streams}/{number}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    _read_environment_again()
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _read_environment_again():
    """Let the libraries that read the environment at their import follow the one of this process."""
    import datasets.config
    import huggingface_hub.constants

    importlib.reload(huggingface_hub.constants)
    importlib.reload(datasets.config)
    huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
