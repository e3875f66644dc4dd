"""Evaluation by generation: PEFT's or transformers' batched generate against the engine's.

    python benchmarks/generation.py [ROWS [CASE or FILE]]

The rows are the quickstart's questions. In the case `mixed` up to two other passages are beside the right one, so that
the rows differ in length. `passages` takes them as they are, four to a passage. `demonstrations` puts the same eight
answered questions before each row, and has no soft prompt. The rows can also be the first ROWS of a JSON Lines file
with SQuAD's columns. PEFT's batches are 8 rows in the order of the data, Trainer's default. PEFT 0.21.2 with
transformers 5.24 writes wrong text with a cache, so an eighth of the rows is also written alone without one. Speeds
are compared by CPU seconds, which other processes of the machine change less.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from common import (
    base_model,
    describe_machine,
    mixed_rows,
    print_table,
    quickstart_rows,
    seconds,
    soft_prompt,
    tokenizer,
)
from datasets import Dataset

from prompt_tuning import Encoder, PromptTuningArguments, PromptTuningTrainer, Template, encode
from prompt_tuning.encoding.batching import pad_left, source_length
from prompt_tuning.encoding.decoding import decode
from prompt_tuning.support.files import read_json_lines

NEW_TOKENS, LENGTH, DEMONSTRATIONS = 16, 20, 8
CASES = {
    "mixed": mixed_rows,
    "passages": lambda count: (quickstart_rows("test") + quickstart_rows("validation"))[:count],
    "demonstrations": lambda count: quickstart_rows("test")[:count],
}


@torch.no_grad()
def generate_in_batches(
    model, sources: list[list[int]], words, *, new_tokens: int = NEW_TOKENS, **settings: object
) -> list[str]:
    """Return greedy texts by the model's own generate, in batches padded left."""
    texts = []
    settings |= {"max_new_tokens": new_tokens, "do_sample": False}
    for start in range(0, len(sources), 8):
        batch = pad_left(sources[start : start + 8], words.pad_token_id)
        output = model.generate(**batch, **settings, pad_token_id=words.pad_token_id)
        texts += decode(output[:, batch["input_ids"].shape[1] :].tolist(), words)
    return texts


def encoded(examples: list[dict], words, demonstrations: bool) -> tuple[Dataset, str]:
    """Return encoded rows and how long they are, behind demonstrations or not."""
    encoder = Encoder(Template.load("question_answering/instruction_last"), words, max_source_tokens=1024)
    rows, report = encode(Dataset.from_list(examples), encoder)
    if not demonstrations:
        return rows, str(report)
    opening = []
    for row in quickstart_rows("train")[::40][:DEMONSTRATIONS]:
        opening += encoder.row(row)["input_ids"]
    behind = []
    for row in rows:
        labels = [-100] * len(opening) + row["labels"]
        behind.append(row | {"input_ids": opening + row["input_ids"], "labels": labels})
    return Dataset.from_list(behind), f"{report}, behind {len(opening)} tokens of demonstrations"


def measure(name: str, examples: list[dict]) -> None:
    """Print the table of a case."""
    words = tokenizer()
    rows, report = encoded(examples, words, name == "demonstrations")
    sources = [ids[: source_length(labels)] for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)]
    first = "PEFT, batches of 8"
    if name == "demonstrations":
        first = "transformers, batches of 8"
        plain, ours = base_model(), base_model()
    else:
        plain, ours = (soft_prompt(base_model(), LENGTH, engine=engine).eval() for engine in (False, True))
    texts, times = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = PromptTuningTrainer(
            model=ours,
            args=PromptTuningArguments(folder, use_cpu=True, disable_tqdm=True, report_to="none"),
            processing_class=words,
            generation_kwargs={"max_new_tokens": NEW_TOKENS},
        )
        calls = {
            first: lambda: texts.update({first: generate_in_batches(plain, sources, words)}),
            "engine": lambda: texts.update({"engine": trainer.predict_texts(rows)}),
        }
        # A first batch fills the caches of memory and of code.
        for model in (plain, ours):
            generate_in_batches(model, sources[:8], words)
        for way, call in calls.items():
            began = time.process_time()
            times[way] = (seconds(call), time.process_time() - began)
    alone = [
        generate_in_batches(plain, [source], words, use_cache=False)[0] for source in sources[: len(sources) // 8]
    ]
    prompt = "no soft prompt" if name == "demonstrations" else f"P={LENGTH}"
    print(f"**{name}**: {report}; {prompt}, {NEW_TOKENS} new tokens, greedy\n")
    table = [("way", "seconds", "CPU seconds", "times the speed", f"of {len(alone)} rows as alone, without a cache")]
    for way, (duration, used) in times.items():
        same = sum(text == single for text, single in zip(texts[way], alone, strict=False))
        table.append((way, f"{duration:.1f}", f"{used:.1f}", f"{times[first][1] / used:.2f}", same))
    print_table(*table)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    chosen = sys.argv[2] if len(sys.argv) > 2 else ""
    print(f"{describe_machine()}\n")
    if chosen and chosen not in CASES:
        measure(Path(chosen).name, read_json_lines(Path(chosen))[:count])
    for name, make in CASES.items():
        if chosen in ("", name):
            measure(name, make(count))


if __name__ == "__main__":
    main()
