"""Predictor: the prompt that is kept between calls of one row.

    python benchmarks/predictor.py [ROWS]

A call of one row is compared with the same call after the kept keys and values of its prompt are dropped, for ROWS
rows (by default 10). The rows are questions of the quickstart. Every answer has 4 tokens, as many as those of the
quickstart have in the mean, and then 16.
"""

import sys

from common import base_model, describe_machine, paired_seconds, print_table, quickstart_rows, ratio, soft_prompt
from common import tokenizer as load_tokenizer

from prompt_tuning import Encoder, Predictor, Template

LENGTH = 130


def one_row_calls(predictor: Predictor, rows: list[dict]) -> dict[str, list[float]]:
    """Return the seconds of a call for each row, with a kept prompt and with one that is computed again."""
    weight = predictor.model.prompt_encoder["default"].embedding.weight
    again, kept = iter(rows), iter(rows)

    def computed_again() -> None:
        weight.data[0, 0] += 1e-6  # The cache of another prompt is not taken.
        predictor([next(again)])

    calls = {"computed again": computed_again, "kept": lambda: predictor([next(kept)])}
    return paired_seconds(calls, len(rows) - 1)


def main() -> None:
    rows = quickstart_rows("test")[: int(sys.argv[1]) + 1 if len(sys.argv) > 1 else 11]
    encoder = Encoder(Template.load("question_answering/instruction_last"), load_tokenizer(), max_source_tokens=256)
    model = soft_prompt(base_model(), LENGTH, engine=True).eval()
    print(f"{describe_machine()}; P={LENGTH}, greedy, {len(rows) - 1} rows\n")
    table = [("new tokens", "prompt", "mean seconds of a call", "median ratio to computed again")]
    for new in (4, 16):
        times = one_row_calls(Predictor(model, encoder, {"max_new_tokens": new, "min_new_tokens": new}), rows)
        for name, seconds in times.items():
            mean = sum(seconds) / len(seconds)
            table.append((new, name, f"{mean:.3f}", f"{ratio(seconds, times['computed again']):.2f}"))
    print_table(*table)


if __name__ == "__main__":
    main()
