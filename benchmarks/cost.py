"""What one training step costs and moves, calculated: large models on many GPUs, and this CPU as a check.

    python benchmarks/cost.py

It computes formulas, without a model or a GPU. docs/cost.md explains them and holds the output. The check reads
benchmarks/results.md, whose steps and memory were measured.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from prompt_tuning.support.tables import markdown_table

RESULTS = Path(__file__).with_name("results.md")
GB, GIB, MIB = 1e9, 2**30, 2**20
PEAK = 989e12  # FLOP/s of an H100 SXM in bfloat16, dense, by its data sheet
SHARE = 0.4  # A step is assumed to reach this share of the peak.
NVLINK, NETWORK = 450e9, 50e9  # bytes/s one way of a GPU: NVLink 4 within a machine, 400 Gb/s between machines
MACHINE = 8  # GPUs


@dataclass(frozen=True)
class Geometry:
    """A decoder of Llama's kind by the numbers of its config.json."""

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
        """Parameters of one layer's matrices."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.ffn

    @property
    def parameters(self) -> int:
        """All but the norms."""
        return self.layers * self.layer + (1 if self.tied else 2) * self.vocabulary * self.hidden

    def saved(self, size: int) -> int:
        """Bytes that one token leaves in one layer for the backward pass, in numbers of `size` bytes.

        Frozen matrices keep no input. Kept are queries, keys, values and what attention gives, three of the MLP's
        (gate, its activation, up), and of each norm its input in float32 and its output.
        """
        attention = 2 * self.head_dim * (self.heads + self.kv_heads)
        return size * (attention + 3 * self.ffn) + 2 * self.hidden * (4 + size)


SMOLLM2_135M = Geometry(576, 30, 9, 3, 64, 1536, 49152, tied=True)
LLAMA_2 = {
    "Llama-2-7B": Geometry(4096, 32, 32, 32, 128, 11008, 32000),
    "Llama-2-70B": Geometry(8192, 80, 64, 8, 128, 28672, 32000),
}


@dataclass(frozen=True)
class Batch:
    """The rows of one GPU's step: how many, their mean and longest length, each one's targets, and P."""

    rows: int
    mean: float
    longest: float
    targets: int
    prompt: int

    def layer_tokens(self, shared: bool) -> float:
        """Count tokens that go through each layer: the prompt once and rows packed, or both for each row, padded."""
        return self.prompt + self.rows * self.mean if shared else self.rows * (self.prompt + self.longest)

    def logits(self, shared: bool) -> float:
        return self.rows * self.targets if shared else self.layer_tokens(shared)

    def pairs(self, shared: bool) -> float:
        """Count queries times keys: what is seen of prompt and row, or the whole square of each padded row."""
        if not shared:
            return self.rows * (self.prompt + self.longest) ** 2
        return self.prompt**2 / 2 + self.rows * (self.mean * self.prompt + self.mean**2 / 2)


BATCH = Batch(rows=8, mean=384, longest=512, targets=32, prompt=100)  # One GPU takes this batch.


def flops(model: Geometry, batch: Batch, shared: bool, checkpointing: bool = False) -> float:
    """Of a forward pass and the gradient of its inputs: frozen matrices have no gradient of their own."""
    products = 2 * model.layers * model.layer * batch.layer_tokens(shared)
    attention = 4 * model.layers * model.heads * model.head_dim * batch.pairs(shared)
    output = 2 * model.vocabulary * model.hidden * batch.logits(shared)
    again = products + attention if checkpointing else 0
    return 2 * products + 3 * attention + 2 * output + again


def activations(model: Geometry, batch: Batch, shared: bool, size: int, checkpointing: bool = False) -> float:
    """Bytes; of the logits three copies in float32, or of `size` 4: themselves, their softmax and its gradient."""
    tokens = batch.layer_tokens(shared)
    layers = tokens * model.layers * model.saved(size)
    if checkpointing:
        layers = tokens * (model.layers * model.hidden * size + model.saved(size))
    return layers + 3 * 4 * model.vocabulary * batch.logits(shared)


def measured() -> list[tuple[str, Batch, float, dict[str, float]]]:
    """Of results.md: each case's name, batch, times PEFT's speed, and MiB by way."""
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
        cases.append(
            (name, batch, ratio, dict(zip(("PEFT", "engine", "compiled", "checkpointing"), cells, strict=False)))
        )
    return cases


def table(*rows: tuple) -> None:
    head, *others = rows
    print(markdown_table(head, others), end="\n\n")


def check() -> None:
    model, rows = SMOLLM2_135M, [("batch", "times PEFT's speed, calculated", "measured", "off by")]
    memory = [("batch", "way", "MiB, calculated", "measured", "off by")]
    for name, batch, ratio, found in measured():
        calculated = flops(model, batch, False) / flops(model, batch, True)
        rows.append((name, f"{calculated:.2f}", f"{ratio:.2f}", f"{calculated / ratio - 1:+.0%}"))
        for way, shared, checkpointing in (
            ("PEFT", False, False), ("engine", True, False), ("checkpointing", True, True),
        ):  # fmt: skip
            if way in found:
                mib = activations(model, batch, shared, 4, checkpointing) / MIB
                way_said = "engine, activation checkpointing" if checkpointing else way
                memory.append((name, way_said, f"{mib:,.0f}", f"{found[way]:,.0f}", f"{mib / found[way] - 1:+.0%}"))
    table(*rows)
    table(*memory)


def compute(batch: Batch) -> None:
    rows = [("model", "way", "tokens in a layer", "TFLOP", "with activation checkpointing", "seconds", "activations, GiB", "with checkpointing")]  # fmt: skip  # noqa: E501
    for name, model in LLAMA_2.items():
        for way, shared in (("PEFT's forward", False), ("shared prompt", True)):
            work = [flops(model, batch, shared, checkpointing) for checkpointing in (False, True)]
            kept = [activations(model, batch, shared, 2, checkpointing) / GIB for checkpointing in (False, True)]
            rows.append(
                (name, way, f"{batch.layer_tokens(shared):,.0f}", *(f"{each / 1e12:,.0f}" for each in work),
                 f"{work[0] / PEAK / SHARE:.2f}", *(f"{each:.1f}" for each in kept))
            )  # fmt: skip
    table(*rows)


def state(batch: Batch) -> None:
    rows = [("model", "frozen weights, GB", "prompt, kB", "its gradient, kB", "Adam's state, kB", "for full fine-tuning: gradient and Adam's state, GB")]  # fmt: skip  # noqa: E501
    for name, model in LLAMA_2.items():
        prompt = 4 * batch.prompt * model.hidden
        full = (2 + 4 + 8) * model.parameters  # bfloat16 gradient; a float32 copy of the weights and two moments
        kilobytes = (f"{each / 1e3:,.0f}" for each in (prompt, prompt, 2 * prompt))
        rows.append((name, f"{2 * model.parameters / GB:.1f}", *kilobytes, f"{full / GB:,.0f}"))
    table(*rows)


def movement(batch: Batch) -> None:
    rows = [("model", "GPUs", "way", "weights on each, GB", "moved by each in a step", "seconds of it", "seconds of products")]  # fmt: skip  # noqa: E501
    for name, model in LLAMA_2.items():
        weights, prompt = 2 * model.parameters, 4 * batch.prompt * model.hidden
        seconds = flops(model, batch, True) / PEAK / SHARE
        for gpus in (8, 64):
            link = NVLINK if gpus <= MACHINE else NETWORK
            ways = [("DDP", weights, 2 * (gpus - 1) / gpus * prompt, link)]
            ways.append(("FSDP", weights / gpus, 2 * (gpus - 1) / gpus * weights, link))
            if gpus > MACHINE:
                within = 2 * (MACHINE - 1) / MACHINE * weights
                ways.append(("FSDP in each machine, copies between", weights / MACHINE, within, NVLINK))
            for way, held, moved, rate in ways:
                said = f"{moved / 1e6:.1f} MB" if moved < GB else f"{moved / GB:,.0f} GB"
                held_said = f"{held / GB:.1f}" + (" (more than 80)" if held > 80 * GB else "")
                rows.append((name, gpus, way, held_said, said, f"{moved / rate:.2f}", f"{seconds:.2f}"))
    table(*rows)


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
