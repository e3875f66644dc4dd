"""Evaluation by generation of 200 rows of mixed length: PEFT's batched generate against the engine's.

    python benchmarks/generation.py [ROWS [FILE]]

The rows are the quickstart's questions, with up to two other passages beside the right one. They can also be the first
ROWS of a JSON Lines file with SQuAD's columns. PEFT's batches are 8 rows in the order of the data, Trainer's default.
PEFT 0.21.2 with transformers 5.24 writes wrong text with a cache, so the rows that both are compared with have none.
"""

import sys
import tempfile
from pathlib import Path

import torch
from common import base_model, describe_machine, mixed_rows, print_table, seconds, soft_prompt, tokenizer
from datasets import Dataset

from prompt_tuning import Encoder, PromptTuningArguments, PromptTuningTrainer, Template, encode
from prompt_tuning.encoding.batching import pad_left, source_length
from prompt_tuning.encoding.decoding import decode
from prompt_tuning.support.files import read_json_lines

NEW_TOKENS, LENGTH = 16, 20


@torch.no_grad()
def generate_in_batches(model, sources: list[list[int]], words, *, use_cache: bool = True) -> list[str]:
    """Return greedy texts by the model's own generate, in batches padded left."""
    texts = []
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "use_cache": use_cache}
    for start in range(0, len(sources), 8):
        batch = pad_left(sources[start : start + 8], words.pad_token_id)
        output = model.generate(**batch, **settings, pad_token_id=words.pad_token_id)
        texts += decode(output[:, batch["input_ids"].shape[1] :].tolist(), words)
    return texts


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    words = tokenizer()
    encoder = Encoder(Template.load("question_answering/instruction_last"), words, max_source_tokens=1024)
    examples = read_json_lines(Path(sys.argv[2]))[:count] if len(sys.argv) > 2 else mixed_rows(count)
    rows, report = encode(Dataset.from_list(examples), encoder)
    sources = [ids[: source_length(labels)] for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)]
    plain = soft_prompt(base_model(), LENGTH, engine=False).eval()
    ours = soft_prompt(base_model(), LENGTH, engine=True).eval()
    with tempfile.TemporaryDirectory() as folder:
        trainer = PromptTuningTrainer(
            model=ours,
            args=PromptTuningArguments(folder, use_cpu=True, disable_tqdm=True, report_to="none"),
            processing_class=words,
            generation_kwargs={"max_new_tokens": NEW_TOKENS},
        )
        texts = {}
        calls = {
            "PEFT, batches of 8": lambda: texts.update(
                {"PEFT, batches of 8": generate_in_batches(plain, sources, words)}
            ),
            "engine": lambda: texts.update({"engine": trainer.predict_texts(rows)}),
        }
        # A first batch fills the caches of memory and of code.
        for model in (plain, ours):
            generate_in_batches(model, sources[:8], words)
        times = {name: seconds(call) for name, call in calls.items()}
    single_rows = [generate_in_batches(plain, [source], words, use_cache=False)[0] for source in sources[:25]]
    print(f"{describe_machine()}; {report}; P={LENGTH}, {NEW_TOKENS} new tokens, greedy\n")
    table = [("way", "seconds", "times the speed of PEFT", "of 25 rows as PEFT writes them alone")]
    for name, duration in times.items():
        same = sum(text == single for text, single in zip(texts[name], single_rows, strict=False))
        table.append((name, f"{duration:.1f}", f"{times['PEFT, batches of 8'] / duration:.2f}", same))
    print_table(*table)


if __name__ == "__main__":
    main()
