"""How a training step's time grows with the length of the prompt and the number of rows.

    python benchmarks/growth.py [ROWS]      # only batches of at most so many rows
    python benchmarks/growth.py sharing     # only the last table

A cell is the seconds of a step relative to the step without a prompt. For PEFT that is the base model's forward over
the padded rows, for the engine its step with a prompt of one token. Rows have 16..32 random tokens and 8 targets. In
the last table 1 to 16 of 16 rows are about one passage, and the CPU seconds of a step are compared.
"""

import sys
import time

import torch
from common import base_model, describe_machine, print_table, random_batch, seconds, soft_prompt

# PEFT's logits of more positions need over 24 GiB: the process was killed at 32 rows and P=400.
MOST_POSITIONS = 8000
PROMPTS, BATCHES = (20, 100, 400), (1, 4, 16, 32)
ROWS, PASSAGE, REST = 16, 75, 25  # Rows of the last table, and the tokens of their passages and of what follows.


def main() -> None:
    print(f"{describe_machine()}; seed 0; the best of three steps, of one where it takes over 3 s\n")
    if sys.argv[1:] == ["sharing"]:
        measure_sharing()
        return
    most = int(sys.argv[1]) if len(sys.argv) > 1 else max(BATCHES)
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
    print_table(*table)
    measure_sharing()


def measure_sharing() -> None:
    """Print how a step's CPU seconds fall with the number of rows about one passage."""
    model = soft_prompt(base_model(), 20, engine=True).train()
    counts: list[int] = []
    mlp = model.get_base_model().model.layers[0].mlp
    mlp.register_forward_hook(lambda module, inputs, output: counts.append(output.shape[:2].numel()))
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
