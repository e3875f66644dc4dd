"""Memory that one training step adds to a loaded model: the peak of live tensors, as torch's profiler counts them.

python benchmarks/memory.py [CASES]     # only so many cases
"""

import sys
from collections.abc import Callable
from functools import partial

from common import base_model, describe_machine, print_table, random_batch, random_llama, soft_prompt
from torch.profiler import ProfilerActivity, profile

WIDE = partial(
    random_llama, hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=4, vocab_size=128256,
)  # fmt: skip
CASES = {
    "P=20, B=8, rows of 64..128": (base_model, 20, 8, 128),
    "P=100, B=16, rows of 32..64": (base_model, 100, 16, 64),
    "128k vocabulary, random weights, P=20, B=8, rows of 64..128": (WIDE, 20, 8, 128),
}
VARIANTS = ("PEFT", "engine", "engine, torch_compile", "engine, activation checkpointing")


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most bytes of tensors that were alive at once during a call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    current = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def added_memory(variant: str, make, length: int, rows: int, longest: int) -> float:
    """Return the MiB at the peak of a step that follows an equal one."""
    base = make()
    model = soft_prompt(base, length, engine=variant != "PEFT").train()
    if variant.endswith("checkpointing"):
        base.activation_checkpointing_enable({"use_reentrant": False})
    if variant.endswith("compile"):
        model.compile_layers()
    batch = random_batch(rows, longest)
    model(**batch).loss.backward()
    return peak_bytes(lambda: model(**batch).loss.backward()) / 2**20


def main() -> None:
    print(f"{describe_machine()}; MiB, and the share of PEFT's\n")
    rows = [("batch", *VARIANTS)]
    count = int(sys.argv[1]) if len(sys.argv) > 1 else len(CASES)
    for case, sizes in list(CASES.items())[:count]:
        peft, *others = [added_memory(variant, *sizes) for variant in VARIANTS]
        rows.append((case, f"{peft:,.0f}", *(f"{mib:,.0f} ({mib / peft:.2f})" for mib in others)))
    print_table(*rows)


if __name__ == "__main__":
    main()
