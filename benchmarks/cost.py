"""Calculate what one training step computes, stores and moves: large models on many GPUs, and this CPU as a check.

    python benchmarks/cost.py

It computes formulas, without a model or a GPU. docs/background/cost.md explains them and holds the output. The check
reads benchmarks/results.md, whose steps and memory were measured.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from prompt_tuning.support.tables import markdown_table

RESULTS = Path(__file__).with_name("results.md")
GB, GIB, MIB = 1e9, 2**30, 2**20
PEAK = 989e12  # The data sheet of the H100 SXM has these FLOP/s for dense products in bfloat16.
SHARE = 0.4  # A step is assumed to reach this share of the peak.
# A GPU sends so many bytes/s one way: by NVLink 4 within a machine, and at 400 Gb/s between machines.
NVLINK, NETWORK = 450e9, 50e9
MACHINE = 8  # A machine has so many GPUs.


@dataclass(frozen=True)
class Geometry:
    """Describe a decoder like Llama by the numbers of its config.json."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    tied: bool = False

    @property
    def layer(self) -> int:
        """The number of parameters in one layer's matrices."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.ffn

    @property
    def parameters(self) -> int:
        """The number of parameters except those of the norms."""
        return self.layers * self.layer + (1 if self.tied else 2) * self.vocabulary * self.hidden

    def saved(self, size: int, again: bool) -> int:
        """Return the bytes that one layer stores of one token for the backward pass, in numbers of `size` bytes.

        A frozen matrix stores no input. A layer stores queries, keys, values and the output of attention. It also
        stores three tensors of the MLP (gate, its activation, up), and each norm's input in float32 and its output.
        With `again` the activation is computed again instead.
        """
        attention = 2 * self.head_dim * (self.heads + self.kv_heads)
        return size * (attention + (2 if again else 3) * self.ffn) + 2 * self.hidden * (4 + size)


SMOLLM2_135M = Geometry(576, 30, 9, 3, 64, 1536, 49152, tied=True)
LLAMA_2 = {
    "Llama-2-7B": Geometry(4096, 32, 32, 32, 128, 11008, 32000),
    "Llama-2-70B": Geometry(8192, 80, 64, 8, 128, 28672, 32000),
}


@dataclass(frozen=True)
class Batch:
    """Describe the rows of one GPU's step: their number, mean and longest length, the targets of a row, and P."""

    rows: int
    mean: float
    longest: float
    targets: int
    prompt: int

    def layer_tokens(self, shared: bool) -> float:
        """Count tokens in a layer: the prompt once with packed rows, or the prompt with each padded row."""
        return self.prompt + self.rows * self.mean if shared else self.rows * (self.prompt + self.longest)

    def logits(self, shared: bool) -> float:
        """Count positions with logits: only the targets, or every token."""
        return self.rows * self.targets if shared else self.layer_tokens(shared)

    def pairs(self, shared: bool) -> float:
        """Count queries times keys: only the visible ones, or the whole square of each padded row."""
        if not shared:
            return self.rows * (self.prompt + self.longest) ** 2
        return self.prompt**2 / 2 + self.rows * (self.mean * self.prompt + self.mean**2 / 2)


BATCH = Batch(rows=8, mean=384, longest=512, targets=32, prompt=100)  # One GPU takes this batch.


def flops(model: Geometry, batch: Batch, shared: bool, checkpointing: bool = False) -> float:
    """Return the FLOP of a forward pass and of its inputs' gradient; frozen matrices need no gradient."""
    products = 2 * model.layers * model.layer * batch.layer_tokens(shared)
    attention = 4 * model.layers * model.heads * model.head_dim * batch.pairs(shared)
    output = 2 * model.vocabulary * model.hidden * batch.logits(shared)
    again = products + attention if checkpointing else 0
    return 2 * products + 3 * attention + 2 * output + again


def activations(model: Geometry, batch: Batch, shared: bool, size: int, checkpointing: bool = False) -> float:
    """Return the bytes stored for the backward pass, with three float32 copies of the logits, of the engine two.

    The copies are the logits, their gradient and, with PEFT, their softmax.
    """
    tokens = batch.layer_tokens(shared)
    layers = tokens * model.layers * model.saved(size, again=shared)
    if checkpointing:
        layers = tokens * (model.layers * model.hidden * size + model.saved(size, again=False))
    return layers + (2 if shared else 3) * 4 * model.vocabulary * batch.logits(shared)


def measured() -> list[tuple[str, Batch, float, dict[str, float]]]:
    """Return the name, batch, times PEFT's speed, and MiB by path of the cases in results.md."""
    text = RESULTS.read_text(encoding="utf-8")
    ratios = re.findall(
        r"\*\*(P=(\d+), B=(\d+), [^*]*)\*\*.*?\| engine +\| [\d.]+ +\| ([\d.]+).*?runs (\d+) tokens.*?PEFT (\d+)\.",
        text,
        re.DOTALL,
    )
    memory = {
        (int(prompt), int(rows)): [float(cell.replace(",", "").split()[0]) for cell in cells.split("|")]
        for prompt, rows, cells in re.findall(r"\| P=(\d+), B=(\d+), rows of [\d.]+ +\| (.*?) \|\n", text)
    }
    cases = []
    for name, *numbers in ratios:
        prompt, rows, ratio, ours, theirs = map(float, numbers)
        targets = 16 if "random" in name else 5
        batch = Batch(int(rows), (ours - prompt) / rows, theirs / rows - prompt, targets, int(prompt))
        cells = memory.get((int(prompt), int(rows)), [])
        mib_by_path = dict(zip(("PEFT", "engine", "compiled", "checkpointing"), cells, strict=False))
        cases.append((name, batch, ratio, mib_by_path))
    return cases


def print_table(*rows: tuple) -> None:
    """Print a Markdown table, whose first row is its head."""
    head, *others = rows
    print(markdown_table(head, others), end="\n\n")


def check() -> None:
    """Print calculated and measured figures of the benchmarks side by side."""
    model = SMOLLM2_135M
    rows = [("batch", "times PEFT's speed, calculated", "measured", "off by")]
    memory = [("batch", "way", "MiB, calculated", "measured", "off by")]
    for name, batch, ratio, measured_mib in measured():
        calculated = flops(model, batch, False) / flops(model, batch, True)
        rows.append((name, f"{calculated:.2f}", f"{ratio:.2f}", f"{calculated / ratio - 1:+.0%}"))
        for path, shared, checkpointing in (
            ("PEFT", False, False), ("engine", True, False), ("checkpointing", True, True),
        ):  # fmt: skip
            if path in measured_mib:
                mib = activations(model, batch, shared, 4, checkpointing) / MIB
                label = "engine, activation checkpointing" if checkpointing else path
                off_by = f"{mib / measured_mib[path] - 1:+.0%}"
                memory.append((name, label, f"{mib:,.0f}", f"{measured_mib[path]:,.0f}", off_by))
    print_table(*rows)
    print_table(*memory)


def compute(batch: Batch) -> None:
    """Print the FLOP, seconds and stored activations of a step."""
    rows = [("model", "way", "tokens in a layer", "TFLOP", "with activation checkpointing", "seconds", "activations, GiB", "with checkpointing")]  # fmt: skip  # noqa: E501
    for name, model in LLAMA_2.items():
        for path, shared in (("PEFT's forward", False), ("shared prompt", True)):
            work = [flops(model, batch, shared, checkpointing) for checkpointing in (False, True)]
            stored = [activations(model, batch, shared, 2, checkpointing) / GIB for checkpointing in (False, True)]
            rows.append(
                (name, path, f"{batch.layer_tokens(shared):,.0f}", *(f"{count / 1e12:,.0f}" for count in work),
                 f"{work[0] / PEAK / SHARE:.2f}", *(f"{gib:.1f}" for gib in stored))
            )  # fmt: skip
    print_table(*rows)


def state(batch: Batch) -> None:
    """Print the bytes of weights, gradient and optimiser state."""
    rows = [("model", "frozen weights, GB", "prompt, kB", "its gradient, kB", "Adam's state, kB", "for full fine-tuning: gradient and Adam's state, GB")]  # fmt: skip  # noqa: E501
    for name, model in LLAMA_2.items():
        prompt = 4 * batch.prompt * model.hidden
        # The gradient is in bfloat16; a copy of the weights and two moments are in float32.
        full = (2 + 4 + 8) * model.parameters
        kilobytes = (f"{size / 1e3:,.0f}" for size in (prompt, prompt, 2 * prompt))
        rows.append((name, f"{2 * model.parameters / GB:.1f}", *kilobytes, f"{full / GB:,.0f}"))
    print_table(*rows)


def movement(batch: Batch) -> None:
    """Print the bytes that a GPU sends in a step, and the seconds that this takes."""
    rows = [("model", "GPUs", "way", "weights on each, GB", "moved by each in a step", "seconds of it", "seconds of products")]  # fmt: skip  # noqa: E501
    for name, model in LLAMA_2.items():
        weights, prompt = 2 * model.parameters, 4 * batch.prompt * model.hidden
        seconds = flops(model, batch, True) / PEAK / SHARE
        for gpus in (8, 64):
            link = NVLINK if gpus <= MACHINE else NETWORK
            strategies = [("DDP", weights, 2 * (gpus - 1) / gpus * prompt, link)]
            strategies.append(("FSDP", weights / gpus, 2 * (gpus - 1) / gpus * weights, link))
            if gpus > MACHINE:
                within = 2 * (MACHINE - 1) / MACHINE * weights
                strategies.append(("FSDP in each machine, copies between", weights / MACHINE, within, NVLINK))
            for strategy, stored, moved, rate in strategies:
                moved_text = f"{moved / 1e6:.1f} MB" if moved < GB else f"{moved / GB:,.0f} GB"
                stored_text = f"{stored / GB:.1f}" + (" (more than 80)" if stored > 80 * GB else "")
                rows.append((name, gpus, strategy, stored_text, moved_text, f"{moved / rate:.2f}", f"{seconds:.2f}"))
    print_table(*rows)


def main() -> None:
    print(
        f"A GPU's batch: {BATCH.rows} rows of {BATCH.mean} tokens in the mean, the longest {BATCH.longest}, "
        f"{BATCH.targets} targets each, P={BATCH.prompt}; bfloat16.\n"
    )
    for part in (compute, state, movement):
        part(BATCH)
    print("SmolLM2-135M in float32 on 2 CPU cores, measured figures from benchmarks/results.md:\n")
    check()


if __name__ == "__main__":
    main()
