"""Predictor: prompts that are kept between calls, and rows of three tasks in one batch.

    python benchmarks/predictor.py [ROWS [TURNS]]

A call of one row is compared with the same call after the kept keys and values of its prompt are dropped, for ROWS
rows (by default 10). Every answer has 4 tokens, as many as those of the quickstart have in the mean, and then 16.
Then 4 rows of each of three tasks with answers of 16 tokens are one batch, a batch for each task, and calls of one
row, TURNS times (by default 3). The prompts are kept there. The rows are questions of the quickstart.

Times are CPU seconds. They count threads that wait for others, so set OMP_NUM_THREADS=1.
"""

import sys
from dataclasses import replace

from common import (
    base_model,
    describe_machine,
    paired_seconds,
    print_table,
    process_seconds,
    quickstart_rows,
    ratio,
    soft_prompt,
)
from common import tokenizer as load_tokenizer
from peft import PromptTuningConfig

from prompt_tuning import Encoder, Predictor, Template
from prompt_tuning.runs.answers import Task

LENGTH, TASKS, ROWS_OF_TASK = 130, 3, 4


def one_row_calls(predictor: Predictor, rows: list[dict]) -> dict[str, list[float]]:
    """Return the seconds of a call for each row, with a kept prompt and with one that is computed again."""
    weight = predictor.model.prompt_encoder["default"].embedding.weight
    again, kept = iter(rows), iter(rows)

    def computed_again() -> None:
        weight.data[0, 0] += 1e-6  # The cache of another prompt is not taken.
        predictor([next(again)])

    calls = {"computed again": computed_again, "kept": lambda: predictor([next(kept)])}
    return paired_seconds(calls, len(rows) - 1, measure=process_seconds)


def mixed_calls(predictor: Predictor, rows: list[dict], turns: int) -> dict[str, list[float]]:
    """Return the seconds in which rows of several tasks are answered; the answers are the same in each way."""
    texts = {}

    def answer(way: str, batches: list[list[dict]]) -> None:
        texts[way] = {row["id"]: text for batch in batches for row, text in zip(batch, predictor(batch), strict=True)}

    of_tasks = [rows[number::TASKS] for number in range(TASKS)]
    calls = {
        "a batch for each task": lambda: answer("tasks", of_tasks),
        "one batch": lambda: answer("mixed", [rows]),
        "row by row": lambda: answer("rows", [[row] for row in rows]),
    }
    times = paired_seconds(calls, turns, measure=process_seconds)
    same = sum(texts["mixed"][row["id"]] == texts["rows"][row["id"]] for row in rows)
    print(f"{same} of {len(rows)} mixed rows have the text of the row by itself\n")
    return times


def several_tasks(encoder: Encoder, predictor: Predictor) -> Predictor:
    """Return a Predictor with three prompts before the model of another one."""
    adapters = ["default"]
    for number in range(1, TASKS):
        adapters.append(str(number))
        config = {"num_virtual_tokens": LENGTH, "prompt_tuning_init": "SAMPLE_VOCAB"}
        predictor.model.add_adapter(str(number), PromptTuningConfig(task_type="CAUSAL_LM", **config))
    predictor.model.eval()
    tasks = {name: Task(encoder, {"max_new_tokens": 16, "min_new_tokens": 16}, adapter=name) for name in adapters}
    return replace(predictor, tasks=tasks)


def main() -> None:
    count, turns = [*map(int, sys.argv[1:]), *(10, 3)[len(sys.argv) - 1 :]]
    examples = quickstart_rows("test")
    template = replace(Template.load("question_answering/instruction_last"), stop=())
    encoder = Encoder(template, load_tokenizer(), max_source_tokens=256)
    model = soft_prompt(base_model(), LENGTH, engine=True).eval()
    print(f"{describe_machine()}; P={LENGTH}, greedy, {count} rows\n")
    table = [("new tokens", "prompt", "mean CPU seconds of a call", "median ratio to computed again")]
    for new in (4, 16):
        predictor = Predictor(model, encoder, {"max_new_tokens": new, "min_new_tokens": new})
        for name, seconds in (times := one_row_calls(predictor, examples[: count + 1])).items():
            mean = sum(seconds) / len(seconds)
            table.append((new, name, f"{mean:.3f}", f"{ratio(seconds, times['computed again']):.2f}"))
    print_table(*table)
    predictor = several_tasks(encoder, predictor)
    rows = []
    for number, row in enumerate(examples[: TASKS * ROWS_OF_TASK]):
        rows.append(row | {"task": [*predictor.tasks][number % TASKS], "id": number})
    times = mixed_calls(predictor, rows, turns)
    table = [(f"{len(rows)} rows of {TASKS} tasks", "mean CPU seconds", "median ratio to a batch for each task")]
    for name, seconds in times.items():
        mean = sum(seconds) / len(seconds)
        table.append((name, f"{mean:.2f}", f"{ratio(seconds, times['a batch for each task']):.2f}"))
    print_table(*table)


if __name__ == "__main__":
    main()
