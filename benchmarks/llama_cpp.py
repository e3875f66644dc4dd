"""An exported prompt in llama.cpp: what weights of fewer bits change.

    python benchmarks/llama_cpp.py [RUN=ROWS] [--rows 140] [--at_once 8] [--types q4_0 q8_0 f16 f32]

RUN is a run of a question answering task, by default that of `make quickstart`, and ROWS a file with rows of it. It
needs the environments of `make test-servers`. The first rows are answered greedily by this package in fp32, and by
llama.cpp's server with the same token ids. EM and F1 are those of the answers to these rows.

With f32, keys and values are f32 too, without flash attention. llama.cpp's converter writes no q4_0. The package gguf
makes it of the f32 file: all matrices are Q4_0, also the embeddings with the prompt, except the head, which is Q8_0.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

from common import describe_machine, print_table
from servers import ENVIRONMENTS, GGUF_TYPES, cpu_seconds, score_texts, started

from prompt_tuning import Predictor
from prompt_tuning.data.rows import open_rows
from prompt_tuning.models.gguf import convert_to_gguf, find_converter
from prompt_tuning.runs.api_client import openai_client
from prompt_tuning.runs.export import export_runs
from prompt_tuning.runs.exported import ExportedTask
from prompt_tuning.runs.requests import Requests
from prompt_tuning.support.files import read_json_lines, write_json_lines

WRITE_Q4_0 = """
import sys, gguf
reader = gguf.GGUFReader(sys.argv[1])
writer = gguf.GGUFWriter(sys.argv[2], reader.get_field("general.architecture").contents())
for name, field in reader.fields.items():
    if name.startswith("GGUF.") or name == "general.architecture":
        continue
    kind = field.types[0]
    value = int(gguf.LlamaFileType.MOSTLY_Q4_0) if name == "general.file_type" else field.contents()
    writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
for tensor in reader.tensors:
    types = gguf.GGMLQuantizationType
    kind = types.F32 if len(tensor.shape) < 2 else types.Q8_0 if tensor.name == "output.weight" else types.Q4_0
    writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.data, kind), raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""
SERVERS = {type: server for server, type in GGUF_TYPES.items()}


def write_file(folder: Path, number_type: str) -> Path:
    """Write the GGUF file of a type into an exported folder."""
    if number_type != "q4_0":
        return convert_to_gguf(find_converter(), folder, number_type, folder.name)
    whole, file = folder / "model-f32.gguf", folder / "model-q4_0.gguf"
    if not whole.is_file():
        convert_to_gguf(find_converter(), folder, "f32", folder.name)
    python = ENVIRONMENTS / "transformers" / "bin" / "python"
    subprocess.run([python, "-c", WRITE_Q4_0, whole, file], check=True)
    return file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="?", default="runs/quickstart=recipes/quickstart/test.jsonl", metavar="RUN=ROWS")
    parser.add_argument("--rows", type=int, default=140)
    parser.add_argument("--at_once", type=int, default=8, help="rows that are answered at once")
    parser.add_argument("--types", nargs="+", default=["q4_0", "q8_0", "f16", "f32"], choices=SERVERS)
    args = parser.parse_args()
    os.environ["PATH"] += f":{ENVIRONMENTS / 'transformers' / 'bin'}"  # There is llama.cpp's converter.
    run, file = args.run.rpartition("=")[::2]
    predictor = replace(Predictor.load(run), autocast=None)
    rows = [row for _, row in islice(open_rows(file), args.rows)]
    expected = predictor(rows, batch_size=args.at_once)
    scores = score_texts(predictor.encoder, predictor.data, rows, expected)
    lines = [["this package, fp32", "", "", f"{scores['exact_match']:.1f}", f"{scores['f1']:.1f}", ""]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_runs([f"task={run}"], folder / "exported", rows=[file])
        task = ExportedTask.load(folder / "exported", "task")
        write_json_lines(folder / "rows.jsonl", rows)
        for number_type in args.types:
            size = write_file(folder / "exported", number_type).stat().st_size
            output = folder / f"{number_type}.jsonl"
            with started(SERVERS[number_type], folder / "exported") as (url, process):
                start = cpu_seconds(process)
                client = openai_client(f"{url}/v1")
                requests = Requests(task, number_type)
                requests.send(str(folder / "rows.jsonl"), str(output), client, concurrency=args.at_once)
                seconds = (cpu_seconds(process) - start) / len(rows)
            texts = [row["prediction"] for row in read_json_lines(output)]
            scores = score_texts(predictor.encoder, predictor.data, rows, texts)
            equal = sum(text == other for text, other in zip(texts, expected, strict=True))
            columns = f"{size / 1e6:.0f}", f"{equal} of {len(rows)}", scores["exact_match"], scores["f1"], seconds
            lines.append([number_type, *columns[:2], f"{columns[2]:.1f}", f"{columns[3]:.1f}", f"{columns[4]:.2f}"])
            print(*lines[-1], sep=" | ", file=sys.stderr, flush=True)
    print(f"{describe_machine()}; {len(rows)} rows, {args.at_once} at once, greedy\n")
    print_table(["weights", "MB", "equal texts", "EM", "F1", "CPU seconds a row"], *lines)


if __name__ == "__main__":
    main()
