"""How a training step's time grows with the length of the prompt and the number of rows.

    python benchmarks/growth.py [ROWS]      # only batches of at most so many rows
    python benchmarks/growth.py sharing     # only the table of rows about one passage
    python benchmarks/growth.py models [N]  # larger models against PEFT, only the first N; not part of the others

A cell is the seconds of a step relative to the step without a prompt. For PEFT that is the base model's forward over
the padded rows, for the engine its step with a prompt of one token. Rows have 16..32 random tokens and 8 targets. In
the table of sharing 1 to 16 of 16 rows are about one passage, and the CPU seconds of a step are compared. The larger
models have random weights; their batch is P=20, B=8 of training_step.py. The largest needs 16 GiB.
"""

import statistics
import sys
import time

import torch
from common import (
    base_model,
    counted_tokens,
    describe_machine,
    paired_seconds,
    print_table,
    random_batch,
    random_llama,
    ratio,
    seconds,
    soft_prompt,
)
from training_step import product_seconds

# PEFT's logits of more positions need over 24 GiB: the process was killed at 32 rows and P=400.
MOST_POSITIONS = 8000
PROMPTS, BATCHES = (20, 100, 400), (1, 4, 16, 32)
ROWS, PASSAGE, REST = 16, 75, 25  # Rows of the table of sharing, and the tokens of their passages and of what follows.
# The sizes of Llamas, by their names in LlamaConfig.
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size",
)  # fmt: skip
MODELS = {
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 49152),
    "SmolLM2-360M": (960, 2560, 32, 15, 5, 49152),
    "Llama 3.2 1B": (2048, 8192, 16, 32, 8, 128256),
}


def main() -> None:
    print(f"{describe_machine()}; seed 0\n")
    if sys.argv[1:2] == ["models"]:
        measure_models(int(sys.argv[2]) if len(sys.argv) > 2 else len(MODELS))
        return
    if sys.argv[1:] != ["sharing"]:
        measure_lengths(int(sys.argv[1]) if len(sys.argv) > 1 else max(BATCHES))
    measure_sharing()


def measure_lengths(most: int) -> None:
    """Print how a step's time grows with the prompt's length, in batches of at most so many rows."""
    batches = [rows for rows in BATCHES if rows <= most]
    engine, plain = base_model(), base_model()
    table = [
        ("way", "rows", "without a prompt (engine: P=1), seconds", *(f"times that, P={length}" for length in PROMPTS))
    ]
    for name, base in (("engine", engine), ("PEFT", plain)):
        for rows in batches:
            batch = random_batch(rows, 32, 8)
            models = [soft_prompt(base, length, engine=name == "engine").train() for length in PROMPTS]
            baseline = best(lambda: step_without_prompt(base, batch, engine=name == "engine"))  # noqa: B023
            cells = []
            for length, model in zip(PROMPTS, models, strict=True):
                if name == "PEFT" and rows * (length + 32) > MOST_POSITIONS:
                    cells.append("more than 24 GiB")
                else:
                    cells.append(f"{best(lambda: model(**batch).loss.backward()) / baseline:.2f}")  # noqa: B023
            table.append((name, rows, f"{baseline:.2f}", *cells))
    print("**length of the prompt**; the best of three steps, of one where it takes over 3 s\n")
    print_table(*table)


def measure_sharing() -> None:
    """Print how a step's CPU seconds fall with the number of rows about one passage."""
    model = soft_prompt(base_model(), 20, engine=True).train()
    counts = counted_tokens(model.get_base_model())
    table = [("rows about one passage", "CPU seconds", "times the speed of one row", "tokens through each layer")]
    first = None
    for shared in (1, 2, 4, 8, 16):
        draw = torch.Generator().manual_seed(0)
        passages = torch.randint(5, 40000, (ROWS // shared, PASSAGE), generator=draw).repeat_interleave(shared, 0)
        ids = torch.cat([passages, torch.randint(5, 40000, (ROWS, REST), generator=draw)], 1)
        labels = ids.masked_fill(torch.arange(PASSAGE + REST) < PASSAGE + REST - 8, -100)
        times = []
        for _ in range(2):
            began = time.process_time()
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
            times.append(time.process_time() - began)
        first = first or min(times)
        table.append((shared, f"{min(times):.1f}", f"{first / min(times):.2f}", counts[-1]))
    lengths = f"{PASSAGE} tokens of a passage and {REST} others"
    print(f"**passage sharing**: {ROWS} rows of {lengths}, P=20; the better of two steps\n")
    print_table(*table)


def measure_models(count: int) -> None:
    """Print a step of PEFT and of the engine for the first models of the list, and what their products allow."""
    batch = random_batch(8, 128)
    table = [("sizes of", "parameters", "PEFT, seconds", "engine", "times PEFT's speed", "share of product rate")]
    for name, sizes in list(MODELS.items())[:count]:
        base = random_llama(**dict(zip(SIZES, sizes, strict=True)))
        models = {way: soft_prompt(base, 20, engine=way == "engine").train() for way in ("PEFT", "engine")}
        tokens = counted_tokens(base)
        calls = {way: lambda model=model: model(**batch).loss.backward() for way, model in models.items()}
        times = paired_seconds(calls, 2)
        products = product_seconds(base, min(tokens), int((batch["labels"] != -100).sum()))
        peft, engine = (statistics.median(times[way]) for way in models)
        speed, share = f"{ratio(times['PEFT'], times['engine']):.2f}", f"{products / engine:.0%}"
        table.append((name, f"{base.num_parameters() / 1e6:,.0f}M", f"{peft:.2f}", f"{engine:.2f}", speed, share))
    print("**models of other sizes**, random weights, P=20, B=8, rows of 64..128 tokens; 2 pairs\n")
    print_table(*table)


def best(step) -> float:
    """Return the fewest seconds of three steps, or those of one step that takes over 3 s."""
    first = seconds(step)
    return first if first > 3 else min(seconds(step) for _ in range(3))


def step_without_prompt(base, batch, engine: bool) -> None:
    """Run forward and backward of only the rows; their embeddings get the gradient instead of a prompt."""
    if engine:
        # The engine needs a prompt, so it gets one of one token.
        soft_prompt(base, 1, engine=True)(**batch).loss.backward()
        return
    embeds = base.get_input_embeddings()(batch["input_ids"]).requires_grad_()
    base(inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"]).loss.backward()


if __name__ == "__main__":
    main()
