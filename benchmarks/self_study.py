"""Compare ways to give a model a long document: in the prompt, or distilled into a cartridge (Eyuboglu et al. 2025).

    python benchmarks/self_study.py DATA --title Tin --passages 12 --questions 96 --steps 60

DATA is a folder with train.jsonl, validation.jsonl and test.jsonl in SQuAD's columns and a `title`. The document is
the first passages of one title, and the people's questions about them are the test rows. The arms:

- no document: the question alone.
- whole document: the document is in the prompt.
- start: a cartridge of the keys and values of the document's first tokens, untrained.
- self-study: the model writes questions about each passage and answers them with the passage before it. The cartridge
  learns, by their distribution over each answer's tokens, to answer as the model does that reads the whole document.
- plain distillation: the same with people's questions about other documents instead.

Only the questions of self-study are sampled (seed 0). Nothing about the test rows is used in training.
"""

import argparse
import itertools
import json
import random
import tempfile
from pathlib import Path

import torch
from common import MODEL, base_model, describe_machine, tokenizer

import prompt_tuning as pt
from prompt_tuning.data.rows import open_rows
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.train import train
from prompt_tuning.support.tables import markdown_table
from prompt_tuning.support.yaml_files import to_yaml

WITH_DOCUMENT = "question_answering/instruction_last"
QUESTION = {
    "source": "Question: {{ question }}\nAnswer the question with a few words copied from the text above.\nAnswer:",
    "target": "{{ answers.text[0] if answers.text else 'unanswerable' }}",
    "references": "answers.text",
    "stop": ["\n"],
}
ASK = "\n\nWrite one short question that this text answers in a few words. Write only the question."
LONGEST_QUESTION, LONGEST_ANSWER = 32, 24
AT_ONCE = 8
KEPT = (
    "model_name_or_path", "task", "lang", "template", "test_file", "max_source_tokens", "max_target_tokens", "seed",
    "use_cpu", "disable_tqdm",
)  # fmt: skip
"""The settings of a hard prompt."""


def read_document(data: Path, title: str, count: int) -> tuple[list[str], list[dict], list[dict]]:
    """Return the first passages of a title, the rows about them, and the rows about other titles."""
    rows = []
    for split in ("train", "validation", "test"):
        rows += [row for _, row in open_rows(data / f"{split}.jsonl")]
    passages = list(dict.fromkeys(row["context"] for row in rows if row["title"] == title))[:count]
    about = [row for row in rows if row["context"] in passages]
    return passages, about, [row for row in rows if row["title"] != title]


@torch.no_grad()
def first_lines(model, words, prompts: list[str], length: int, *, sample: bool) -> list[str]:
    """Return the first line that the model writes after each prompt."""
    lines = []
    for start in range(0, len(prompts), AT_ONCE):
        batch = prompts[start : start + AT_ONCE]
        inputs = words(batch, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        written = model.generate(
            **inputs,
            max_new_tokens=length,
            do_sample=sample,
            pad_token_id=words.pad_token_id,
            stop_strings=["\n"],
            tokenizer=words,
        )
        texts = words.batch_decode(written[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        lines += [text.strip().partition("\n")[0].strip() for text in texts]
    return lines


def written_questions(model, words, passages: list[str], count: int) -> list[tuple[str, str]]:
    """Return pairs of a passage and a question that the model wrote about it, without repetitions."""
    torch.manual_seed(0)
    asked = list(itertools.islice(itertools.cycle(passages), count))
    chats = [[{"role": "user", "content": passage + ASK}] for passage in asked]
    prompts = [words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    questions = first_lines(model, words, prompts, LONGEST_QUESTION, sample=True)
    pairs = dict.fromkeys(zip(asked, questions, strict=True))
    return [(passage, question) for passage, question in pairs if question.endswith("?")]


def answered(model, words, document: str, pairs: list[tuple[str, str]]) -> list[dict]:
    """Return rows about the document: the questions, with what the model answers after their passages."""
    template = pt.Template.load(WITH_DOCUMENT)
    prompts = []
    for passage, question in pairs:
        row = {"context": passage, "question": question}
        prompts.append(template.render(row, with_target=False).source)
    answers = first_lines(model, words, prompts, LONGEST_ANSWER, sample=False)
    rows = []
    for (_, question), answer in zip(pairs, answers, strict=True):
        if answer:
            rows.append({"context": document, "question": question, "answers": {"text": [answer]}})
    return rows


def recipe_of(folder: Path, document: str, options: argparse.Namespace) -> dict:
    """Return the settings that the arms share."""
    template = folder / "question.yaml"
    template.write_text(to_yaml(QUESTION), encoding="utf-8")
    words = tokenizer()
    start = words.decode(words(document, add_special_tokens=False).input_ids[: options.tokens])
    longest = len(words(document).input_ids) + 128
    return {
        "model_name_or_path": str(MODEL), "task": "question_answering", "lang": "en", "template": str(template),
        "teacher_template": WITH_DOCUMENT, "max_teacher_tokens": longest, "loss": "kl", "method": "cartridge",
        "init": "text", "init_text": start, "max_source_tokens": longest, "max_target_tokens": LONGEST_ANSWER + 8,
        "drop_overlong": True, "max_steps": options.steps, "learning_rate": options.learning_rate,
        "per_device_train_batch_size": 4, "save_strategy": "no", "seed": 42, "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip


def saved(rows: list[dict], path: Path) -> str:
    """Write rows as JSON Lines, and return the file's name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def main(args: list[str] | None = None) -> None:
    """Run the arms and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--title", default="Tin")
    parser.add_argument("--passages", type=int, default=12)
    parser.add_argument("--questions", type=int, default=96, help="questions that the model writes")
    parser.add_argument("--test_rows", type=int, help="use so many of the people's questions, drawn with seed 0")
    parser.add_argument("--tokens", type=int, default=128, help="length of the cartridge")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--learning_rate", type=float, default=1e-2)
    options = parser.parse_args(args)
    passages, about, others = read_document(options.data, options.title, options.passages)
    if options.test_rows:
        about = random.Random(0).sample(about, min(options.test_rows, len(about)))
    document = "\n".join(passages)
    test = [row | {"context": document} for row in about]
    model, words = base_model(), tokenizer()
    own = answered(model, words, document, written_questions(model, words, passages, options.questions))
    drawn = random.Random(0).sample(others, len(own))
    plain = answered(model, words, document, [(document, row["question"]) for row in drawn])
    del model
    print(describe_machine())
    print(
        f"{len(passages)} passages, {len(test)} test rows; training rows: {len(own)} self-written, {len(plain)} plain"
    )
    length = len(words(document).input_ids)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = recipe_of(folder, document, options) | {"test_file": saved(test, folder / "test.jsonl")}
        files = {"own": saved(own, folder / "own.jsonl"), "plain": saved(plain, folder / "plain.jsonl")}
        hard = {key: recipe[key] for key in KEPT} | {"method": "none"}
        untrained = {"max_steps": 1, "learning_rate": 1e-12}
        rows = []
        for arm, tokens, settings in (
            ("no document", 0, hard),
            ("whole document", length, hard | {"template": WITH_DOCUMENT}),
            ("start", options.tokens, recipe | untrained | {"train_file": files["own"]}),
            ("self-study", options.tokens, recipe | {"train_file": files["own"]}),
            ("plain distillation", options.tokens, recipe | {"train_file": files["plain"]}),
        ):
            run = folder / arm
            train(load_recipe(settings | {"output_dir": str(run)}), evaluate_hard_prompt=settings["method"] == "none")
            scores = pt.Run(run).results
            scores = scores.get("soft_prompt") or scores["hard_prompt"]
            rows.append((arm, tokens, scores["f1"], scores["exact_match"]))
            print(*rows[-1], flush=True)
    print(markdown_table(("arm", "tokens before the question", "F1", "EM"), rows))


if __name__ == "__main__":
    main()
