"""Train over two hosts and cut one of them off; a host is a network namespace, and a virtual cable joins the two.

    sudo .venv/bin/python benchmarks/two_hosts.py [SECONDS]

It needs Linux, `ip` (package iproute2) and the right to make network namespaces. A tiny random model trains four
times: over both hosts undisturbed, again until a host's cable is pulled after a checkpoint, resumed from there, and in
one process. SECONDS is ddp_timeout, by default 15; a busy machine needs more.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common import ROOT
from safetensors.torch import load_file

sys.path.insert(0, str(ROOT / "tests"))
from helpers.models import tiny_llama, tiny_tokenizer
from helpers.rows import question_rows, write_jsonl

HOSTS = {"pt-host-0": "10.231.77.1", "pt-host-1": "10.231.77.2"}
TIMEOUT = int(sys.argv[1]) if __name__ == "__main__" and sys.argv[1:] else 15  # It is ddp_timeout, in seconds.
STEPS, SAVED = 240, 60
RECIPE = f"""\
model_name_or_path: tiny
task: question_answering
train_file: train.jsonl
test_file: test.jsonl
template: question_answering/plain
num_virtual_tokens: 6
max_source_tokens: 96
max_target_tokens: 12
per_device_train_batch_size: 2
max_steps: {STEPS}
save_steps: {SAVED}
ddp_timeout: {TIMEOUT}
use_cpu: true
disable_tqdm: true
"""


def ip(*args: str) -> None:
    """Run the command `ip`."""
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)


@contextmanager
def two_hosts():
    """Make two network namespaces with the names of HOSTS and a cable between them, and delete them afterwards."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        sys.exit("skipped: this needs `ip` and the right to make network namespaces (root)")
    with ExitStack() as namespaces:
        for host in HOSTS:
            try:
                ip("netns", "add", host)
            except subprocess.CalledProcessError as error:
                sys.exit(f"skipped: no network namespace can be made here: {error.stderr.strip()}")
            namespaces.callback(ip, "netns", "del", host)
        first, second = HOSTS
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for host, address in HOSTS.items():
            ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", host, "link", "set", device, "up")
        yield


@contextmanager
def training(folder: Path, output: str, *overrides: str):
    """Launch a run and yield its process on each host."""
    processes = []
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    try:
        for rank, host in enumerate(HOSTS):
            launch = [sys.executable, "-m", "accelerate.commands.launch"]
            launch += ["--config_file", str(ROOT / "recipes/accelerate/ddp_multi_node.yaml")]
            launch += ["--num_processes", "2", "--mixed_precision", "no", "--machine_rank", str(rank)]
            launch += ["--main_process_ip", HOSTS["pt-host-0"]]
            command = ["-m", "prompt_tuning", "train", "recipe.yaml", "--output_dir", output, *overrides]
            with (folder / f"{host}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", host, *launch, *command],
                        cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True,
                    )
                )  # fmt: skip
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def train_to_the_end(folder: Path, output: str, *overrides: str) -> float:
    """Run to the end on both hosts, and return the seconds."""
    started = time.perf_counter()
    with training(folder, output, *overrides) as processes:
        codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit("\n".join((folder / f"{host}.log").read_text()[-3000:] for host in HOSTS))
    return time.perf_counter() - started


def train_in_one_process(folder: Path, output: str) -> None:
    """Run without a launcher, with as many rows in a step."""
    command = [sys.executable, "-m", "prompt_tuning", "train", "recipe.yaml", "--output_dir", output]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    rows = ["--per_device_train_batch_size", "4"]
    subprocess.run([*command, *rows], cwd=folder, env=environment, check=True, capture_output=True)


def difference(folder: Path, run: str) -> float:
    """Return the largest difference of a run's adapter from the undisturbed one's."""
    whole, other = (load_file(folder / name / "adapter_model.safetensors") for name in ("whole", run))
    return max(float((whole[name] - other[name]).abs().max()) for name in whole)


def bytes_on_cable(host: str) -> int:
    """Return the number of bytes that a host sent and received by its cable."""
    counters = [f"/sys/class/net/cable/statistics/{direction}_bytes" for direction in ("rx", "tx")]
    read = subprocess.run(["ip", "netns", "exec", host, "cat", *counters], check=True, capture_output=True, text=True)
    return sum(map(int, read.stdout.split()))


def cut_off(folder: Path, output: str) -> list[tuple[str, int, float, str]]:
    """Pull the second host's cable after a checkpoint; return (host, exit code, seconds until it ended, error)."""
    with training(folder, output) as processes:
        while not (folder / output / f"checkpoint-{2 * SAVED}" / "trainer_state.json").is_file():
            if any(process.poll() is not None for process in processes):
                sys.exit((folder / "pt-host-0.log").read_text()[-3000:])
            time.sleep(0.01)
        ip("-n", "pt-host-1", "link", "set", "cable", "down")
        pulled = time.perf_counter()
        ended = {}
        while len(ended) < len(processes) and time.perf_counter() < pulled + 10 * TIMEOUT:
            for host, process in zip(HOSTS, processes, strict=True):
                if host not in ended and process.poll() is not None:
                    ended[host] = time.perf_counter() - pulled
            time.sleep(0.05)
        ip("-n", "pt-host-1", "link", "set", "cable", "up")
        ends = []
        for host, process in zip(HOSTS, processes, strict=True):
            log = (folder / f"{host}.log").read_text().splitlines()
            error = next((line for line in log if line.startswith("error:")), "nothing")
            ends.append((host, process.poll(), ended.get(host, float("nan")), error))
        return ends


def main() -> None:
    with two_hosts(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = tiny_tokenizer()
        tiny_llama(len(tokenizer)).save_pretrained(folder / "tiny")
        tokenizer.save_pretrained(folder / "tiny")
        write_jsonl(folder / "train.jsonl", question_rows(40))
        write_jsonl(folder / "test.jsonl", question_rows(9, 5))
        (folder / "recipe.yaml").write_text(RECIPE)

        seconds = train_to_the_end(folder, "whole")
        num_bytes = bytes_on_cable("pt-host-0")
        print(f"undisturbed: {STEPS} steps over two hosts, {num_bytes:,} bytes on the cable, {seconds:.0f} s")
        print(f"\nthe second host's cable pulled after step {2 * SAVED}, ddp_timeout {TIMEOUT} s:")
        for host, code, after, error in cut_off(folder, "cut"):
            print(f"  {host}: exit code {code} after {after:.1f} s: {error}")
        checkpoints = sorted(path.name for path in (folder / "cut").glob("checkpoint-*"))
        print(f"  left in the run's folder: {', '.join(checkpoints)}")
        train_to_the_end(folder, "cut", "--resume_from_checkpoint", "true")
        resumed = difference(folder, "cut")
        print(f"\nresumed on both; largest difference from the undisturbed run's adapter: {resumed:.1e}")
        train_in_one_process(folder, "one")
        alone = difference(folder, "one")
        print(f"one process with the same rows in a step; largest difference from the two hosts' adapter: {alone:.1e}")
        # Rounding differs by 1e-6 after some steps, and training enlarges it.
        if resumed > 1e-6 or alone > 1e-3:
            sys.exit("the runs differ")


if __name__ == "__main__":
    main()
