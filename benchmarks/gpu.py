"""Measure one CUDA machine in at most ten minutes: device tests, steps, generation, and the longest kernels.

    make gpu                                     # or: python benchmarks/gpu.py; writes benchmarks/results-gpu.md
    python benchmarks/gpu.py steps generation    # print only these sections
    python benchmarks/gpu.py --dry_run           # the same on a CPU with tiny sizes, which takes seconds

Each section is a process with a time budget. A section that fails is written as failed, and the others still run.
The model has the shape of Llama 3.2 1B and random weights in bfloat16, so that nothing is downloaded.
"""

import argparse
import gc
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import (
    ROOT,
    describe_machine,
    paired_seconds,
    print_table,
    random_batch,
    ratio,
    seconds,
    soft_prompt,
    trainer_step,
)
from cost import GIB, Batch, Geometry, flops
from peft import LoraConfig, get_peft_model
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from prompt_tuning.encoding.batching import move_padding
from prompt_tuning.support.files import atomic_write

sys.path.insert(0, str(ROOT / "tests"))
from helpers.models import tiny_tokenizer

RESULTS = ROOT / "benchmarks" / "results-gpu.md"
ENGINE, PEFT, LORA = "engine", "PEFT", "LoRA, r=8"


@dataclass(frozen=True)
class Sizes:
    """Describe what is measured: the model, the rows of a batch, the prompts, and how often.

    Steps have each of the prompts; generation and kernels have `prompt`.
    """

    device: str
    model: Geometry
    rows: int
    longest: int
    targets: int
    prompts: tuple[int, ...]
    prompt: int
    new_tokens: int
    product: int
    turns: int
    tests: tuple[str, ...]


LLAMA_1B = Geometry(2048, 16, 32, 8, 64, 8192, 128256, tied=True)
GPU = Sizes(
    "cuda:0", LLAMA_1B, rows=16, longest=256, targets=16, prompts=(20, 100, 1000), prompt=100,
    new_tokens=32, product=8192, turns=20, tests=("tests/devices",),
)  # fmt: skip
TINY = Sizes(
    "cpu", Geometry(32, 2, 4, 2, 8, 64, 500, tied=True), rows=3, longest=12, targets=4, prompts=(2, 5), prompt=5,
    new_tokens=3, product=64, turns=1, tests=("--noconftest", "tests/project/test_layout.py", "-k", "circle"),
)  # fmt: skip


def base_model(sizes: Sizes, attention: str = "sdpa") -> PreTrainedModel:
    """Make a frozen model with random weights in bfloat16 on the device."""
    shape = sizes.model
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=shape.tied, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(sizes.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    return model.requires_grad_(False).eval()


def plain_attention() -> str:
    """Return the attention of PEFT's model: the package flash-attn if it is there, else PyTorch's kernels."""
    return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"


def product_rate(sizes: Sizes) -> float:
    """Measure the FLOP/s of a large product of matrices in bfloat16."""
    left, right = (torch.randn(sizes.product, sizes.product, device=sizes.device).bfloat16() for _ in range(2))
    times = [seconds(lambda: left @ right) for _ in range(12)]
    return 2 * sizes.product**3 / statistics.median(times[2:])


def added_gib(call: Callable[[], object], device: str) -> float:
    """Return the GiB that a call adds at its peak to what is allocated on a GPU."""
    if device == "cpu":
        call()
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / GIB


def measured(calls: dict[str, Callable], sizes: Sizes, until: float) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the paired seconds of the calls that run, and the GiB that each call adds, or why it cannot run."""
    running, memory = {}, {}
    for name, call in calls.items():
        try:
            memory[name] = f"{added_gib(call, sizes.device):.2f}"
        except torch.OutOfMemoryError:
            memory[name] = "out of memory"
        except RuntimeError as error:
            memory[name] = f"failed: {str(error).splitlines()[0]}"
        else:
            running[name] = call
        gc.collect()
        if sizes.device != "cpu":
            torch.cuda.empty_cache()
    return paired_seconds(running, sizes.turns, until), memory


def timing_cells(name: str, times: dict[str, list[float]], tokens: int, compared: str) -> tuple[str, ...]:
    """Return the cells of a call: milliseconds, tokens in a second, and the median of the paired ratios."""
    if name not in times:
        return "", "", ""
    median = statistics.median(times[name])
    faster = f"{ratio(times[compared], times[name]):.2f}" if compared in times else ""
    return f"{1000 * median:.1f}", f"{tokens / median:,.0f}", faster


def num_pairs(times: dict[str, list[float]]) -> int:
    """Return how often each call was timed."""
    return max(map(len, times.values()), default=0)


def with_flash_kernel(call: Callable[[], object]) -> Callable[[], object]:
    """Let PyTorch take only its flash kernel in a call. It has no masks, so the rows may have no padding."""

    def restricted() -> object:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return call()

    return restricted


def machine(sizes: Sizes, until: float) -> None:
    """Print the GPU, the driver, the versions, and the rate that shares are relative to."""
    print(f"{describe_machine('bfloat16')}\n")
    if sizes.device != "cpu":
        gpu = torch.cuda.get_device_properties(0)
        print(
            f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, compute capability {gpu.major}.{gpu.minor}, "
            f"driver {driver_version()}, CUDA {torch.version.cuda}\n"
        )
    rate = product_rate(sizes) / 1e12
    print(f"A product of two bfloat16 matrices of {sizes.product:,} x {sizes.product:,}: {rate:,.1f} TFLOP/s")


def driver_version() -> str:
    """Return the version of the GPU's driver, as nvidia-smi prints it."""
    if shutil.which("nvidia-smi") is None:
        return "unknown, since nvidia-smi is missing"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]


def device_tests(sizes: Sizes, until: float) -> None:
    """Print how many device tests passed, and the names of those that failed."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", *sizes.tests]
    left = until - time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    if done.returncode > 1:  # pytest itself failed, or found no test.
        raise RuntimeError(f"pytest ended with {done.returncode}: {lines[-1]}")
    print(f"`pytest {' '.join(sizes.tests)}`: {lines[-1].strip('= ')}")
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if failed:
        print("\n```\n" + "\n".join(failed) + "\n```")


def step_calls(
    sizes: Sizes, bases: dict[str, PreTrainedModel], length: int, batch: dict[str, torch.Tensor], folder: str
) -> dict[str, Callable]:
    """Return a training step of each way, by name."""
    models = {name: soft_prompt(base, length, engine=name == ENGINE) for name, base in bases.items()}
    # A new model each time: Trainer wraps the forward of the one that it trains.
    models[LORA] = get_peft_model(base_model(sizes, plain_attention()), LoraConfig(task_type="CAUSAL_LM", r=8))
    calls = {}
    for name, model in models.items():
        step = trainer_step(model, batch, folder, tiny_tokenizer(), use_cpu=sizes.device == "cpu", bf16=True)
        flash = name != ENGINE and plain_attention() == "sdpa" and bool(batch["attention_mask"].all())
        calls[name] = with_flash_kernel(step) if flash else step
    return calls


def step_flops(sizes: Sizes, name: str, length: int, mask: torch.Tensor) -> float:
    """Return the FLOP that a way needs for a step, by the formulas of cost.py."""
    rows = (len(mask), mask.sum().item() / len(mask), mask.shape[1])
    return flops(sizes.model, Batch(*rows, sizes.targets, 0 if name == LORA else length), shared=name == ENGINE)


def print_steps(sizes: Sizes, calls: dict[str, Callable], length: int, mask: torch.Tensor, until: float) -> None:
    """Print the table of one batch, whose mask is `[B, T]`."""
    losses = {}
    noted = {name: lambda name=name, call=call: losses.update({name: call()}) for name, call in calls.items()}
    times, memory = measured(noted, sizes, until)
    rate = product_rate(sizes)
    head = ("way", "milliseconds", "text tokens/s", "times PEFT's speed", "share of the bfloat16 rate", "GiB it adds")
    table = [(*head, "loss")]
    for name in calls:
        cells = timing_cells(name, times, int(mask.sum()), PEFT)
        needed = step_flops(sizes, name, length, mask)
        share = f"{needed / rate / statistics.median(times[name]):.0%}" if name in times else ""
        loss = f"{losses[name].item():.3f}" if name in losses else ""
        table.append((name, *cells, share, memory[name], loss))
    kind = "without padding" if mask.all() else "padded by PEFT and LoRA"
    rows = f"B={len(mask)}, rows of {mask.sum(1).min()} to {mask.sum(1).max()} tokens, {kind}"
    print(f"**P={length}, {rows}**, {num_pairs(times)} pairs\n")
    print_table(*table)


def steps(sizes: Sizes, until: float) -> None:
    """Print the training steps of every prompt, before rows of one length and of many."""
    bases = {ENGINE: base_model(sizes), PEFT: base_model(sizes, plain_attention())}
    size = sum(weight.nbytes for weight in bases[ENGINE].parameters()) / GIB
    print(
        f"A Llama of {bases[ENGINE].num_parameters() / 1e9:.2f} billion parameters, random, bfloat16, {size:.2f} GiB; "
        f"{sizes.targets} targets a row; a step of Trainer with bf16, without the optimiser's; PEFT and LoRA have the "
        f"attention {plain_attention()}, for rows without padding only its flash kernel.\n"
    )
    cases = [(length, shortest) for length in sizes.prompts for shortest in (sizes.longest, sizes.longest // 2)]
    with tempfile.TemporaryDirectory() as folder:
        for number, (length, shortest) in enumerate(cases):
            now = time.monotonic()
            batch = random_batch(sizes.rows, sizes.longest, sizes.targets, sizes.model.vocabulary, shortest)
            calls = step_calls(sizes, bases, length, batch, folder)
            case_until = now + (until - now) / (len(cases) - number)
            print_steps(sizes, calls, length, batch["attention_mask"], case_until)
            del calls
            gc.collect()


def generation(sizes: Sizes, until: float) -> None:
    """Print the generation of one batch, padded left."""
    base, length = base_model(sizes, plain_attention()), sizes.prompt
    engine = soft_prompt(base_model(sizes), length, engine=True).eval()
    plain = soft_prompt(base, length, engine=False).eval()
    batch = random_batch(4 * sizes.rows, sizes.longest, vocabulary=sizes.model.vocabulary)
    mask, ids = move_padding("left", batch["attention_mask"], batch["input_ids"])
    rows = {"input_ids": ids.to(sizes.device), "attention_mask": mask.to(sizes.device)}
    rows |= {"max_new_tokens": sizes.new_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    calls = {
        ENGINE: lambda: engine.generate(**rows),
        PEFT: lambda: plain.generate(**rows),
        "PEFT, no cache": lambda: plain.generate(**rows, use_cache=False),
        "base model, no prompt": lambda: base.generate(**rows),
    }
    with torch.no_grad():
        times, memory = measured(calls, sizes, until)
    table = [("way", "milliseconds", "new tokens/s", "times PEFT's speed", "GiB it adds")]
    for name in calls:
        table.append((name, *timing_cells(name, times, len(ids) * sizes.new_tokens, PEFT), memory[name]))
    print(
        f"{len(ids)} rows of {sizes.longest // 2} to {sizes.longest} tokens behind P={length}, {sizes.new_tokens} new "
        f"tokens each, greedy, {num_pairs(times)} pairs. With a cache PEFT 0.21.2 writes wrong text "
        "(docs/background/engine.md).\n"
    )
    print_table(*table)


def longest_kernels(sizes: Sizes, until: float) -> None:
    """Print the ten kernels that take most of the engine's training step, and how long all of them take."""
    length = sizes.prompt
    batch = random_batch(sizes.rows, sizes.longest, sizes.targets, sizes.model.vocabulary)
    model = soft_prompt(base_model(sizes), length, engine=True)
    with tempfile.TemporaryDirectory() as folder:
        step = trainer_step(model, batch, folder, tiny_tokenizer(), use_cpu=sizes.device == "cpu", bf16=True)
        times = [seconds(step) for _ in range(6)]
        with profile() as profiled:
            seconds(step)
    events = []
    for event in profiled.key_averages():
        if sizes.device != "cpu" and event.device_type == DeviceType.CUDA:
            events.append((event.self_device_time_total / 1000, event.count, event.key))
        elif sizes.device == "cpu":
            events.append((event.self_cpu_time_total / 1000, event.count, event.key))
    events.sort(reverse=True)
    total = sum(milliseconds for milliseconds, *_ in events)
    print(
        f"The engine's step at P={length}, B={sizes.rows}, rows of {sizes.longest // 2} to {sizes.longest} tokens: "
        f"{sum(event[1] for event in events):,} kernels take {total:.1f} ms. Without the profiler the step takes "
        f"{1000 * statistics.median(times[1:]):.1f} ms.\n"
    )
    table = [("kernel", "calls", "milliseconds", "share")]
    for milliseconds, count, name in events[:10]:
        table.append((f"`{name[:90]}`", count, f"{milliseconds:.2f}", f"{milliseconds / total:.0%}"))
    print_table(*table)


@dataclass(frozen=True)
class Section:
    """Describe a section of the report; its process is ended when the budget is used up, in seconds."""

    title: str
    run: Callable[[Sizes, float], None]
    budget: int


# The budgets leave a minute of ten for the imports of the first process, which finds nothing in the disk's cache.
SECTIONS = {
    "machine": Section("Machine", machine, 70),
    "device_tests": Section("The suite's device tests on this GPU", device_tests, 170),
    "steps": Section("Training steps: the engine, plain PEFT and LoRA at equal batches", steps, 150),
    "generation": Section("Generation", generation, 90),
    "longest_kernels": Section("The ten longest kernels of a training step", longest_kernels, 60),
}


def section_text(name: str) -> tuple[str, bool]:
    """Run a section in a process of its own, and return its text and whether it succeeded."""
    budget = SECTIONS[name].budget
    began = time.monotonic()
    failure = ""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, name]
        try:
            code = subprocess.run(command, stdout=output, stderr=errors, timeout=budget).returncode
        except subprocess.TimeoutExpired:
            failure = f"it did not end within {budget} s"
        else:
            errors.seek(0)
            lines = [line.strip() for line in errors if line.strip()]
            if code != 0:
                failure = lines[-1] if lines else f"it ended with {code}"
                print(*lines[-20:], sep="\n", file=sys.stderr)
        output.seek(0)
        text = output.read().strip()
    command = f"`python benchmarks/gpu.py {name}`, {time.strftime('%Y-%m-%d')}, {time.monotonic() - began:.0f} s"
    parts = [f"{command}:", text, f"Failed: `{failure}`" if failure else ""]
    return "\n\n".join(part for part in parts if part), not failure


def report() -> bool:
    """Run every section, write the results after each, and return whether all succeeded."""
    texts, succeeded = {}, True
    for name in SECTIONS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        texts[name], fine = section_text(name)
        succeeded = succeeded and fine
        with atomic_write(RESULTS) as file:
            file.write("# One CUDA GPU, by `make gpu`\n")
            for section, described in SECTIONS.items():
                file.write(f"\n## {described.title}\n\n{texts.get(section, 'Not run yet.')}\n")
    return succeeded


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"print only these: {', '.join(SECTIONS)}")
    parser.add_argument("--dry_run", action="store_true", help="print every section with tiny sizes on a CPU")
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"no section {unknown[0]}. Name some of {', '.join(SECTIONS)}")
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: there is no CUDA device. Run it on a machine with a GPU, or try --dry_run.")
    if not args.dry_run and not args.sections:
        sys.exit(0 if report() else 1)
    if args.dry_run:
        print("A dry run on a CPU with tiny sizes: its figures say nothing about a GPU.\n")
    for name in args.sections or SECTIONS:
        # The rest of the budget is for imports before, and for the turn that has begun.
        SECTIONS[name].run(TINY if args.dry_run else GPU, time.monotonic() + 0.7 * SECTIONS[name].budget)


if __name__ == "__main__":
    main()
