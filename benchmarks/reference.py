"""A reference recipe against what it should beat: hard prompt, few-shot prompt, LoRA, and PEFT's defaults.

    python benchmarks/reference.py RECIPE FOLDER [--seeds 42 43 44] [--key value ...]
    python benchmarks/reference.py RECIPE FOLDER --train_rows 16 64 256      # a learning curve

FOLDER holds train.jsonl, validation.jsonl and test.jsonl; 200 test and 100 validation rows are drawn from them once
(seed 0), all training rows are used. First `rank` chooses the best few-shot prompt and the best zero-shot one on the
validation rows; then `compare` trains and evaluates, at equal steps, in runs/reference/NAME, where what is there
already is not run again. "peft" is plain PEFT and Trainer with their defaults (random prompt, learning rate 5e-5, as
many virtual tokens), evaluated by this project.
"""

import argparse
import json
import random
from pathlib import Path

import yaml
from common import ROOT, base_model, describe_machine, print_table, tokenizer
from peft import PromptTuningConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

from prompt_tuning.compare import compare, comparison_text
from prompt_tuning.config import load_recipe
from prompt_tuning.evaluation import evaluate
from prompt_tuning.prepare import prepare
from prompt_tuning.rank import rank
from prompt_tuning.rank_table import rank_text

MODEL = "models/SmolLM2-135M-Instruct"
ROWS = {"train": None, "validation": 100, "test": 200}
STARTS = ("init", "init_text", "init_demonstrations", "num_virtual_tokens")


def drawn_rows(folder: Path, into: Path) -> list[str]:
    """The flags that name the drawn rows."""
    into.mkdir(parents=True, exist_ok=True)
    for split, count in ROWS.items():
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        if count and count < len(lines):
            lines = random.Random(0).sample(lines, count)
        (into / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [f"--{split}_file={into / split}.jsonl" for split in ROWS]


def hard_prompts(recipe: Path, flags: list[str], into: Path) -> dict[str, dict]:
    """The best zero-shot and the best few-shot prompt on the validation rows."""
    found = {}
    for name, counts in (("zero_shot", [0]), ("few_shot", [2, 4])):
        budget = ["--max_source_tokens=1536"] if name == "few_shot" else []
        ranked = rank(str(recipe), [*flags, *budget], into / f"rank_{name}", counts=counts)
        print(f"\n{name}\n\n{rank_text(ranked)}", flush=True)
        winner = yaml.safe_load((into / f"rank_{name}" / "winner.yaml").read_text(encoding="utf-8"))
        settings = {key: winner[key] for key in ("template", "num_demonstrations", "seed") if key in winner}
        found[name] = {"method": "none", **settings} | ({"max_source_tokens": 1536} if budget else {})
    return found


def variants(recipe: Path, hard: dict[str, dict], into: Path) -> list[str]:
    """Recipe files of all that is compared, the recipe itself first."""
    settings = yaml.load(recipe.read_text(encoding="utf-8"), yaml.BaseLoader)
    started = {key: value for key, value in settings.items() if key not in STARTS}
    parts = {
        "prompt_tuning": settings,
        "lora": started | {"method": "lora"},
        **{name: started | changes for name, changes in hard.items()},
    }
    paths = []
    for name, part in parts.items():
        path = into / f"{name}.yaml"
        path.write_text(yaml.safe_dump(part, sort_keys=False, allow_unicode=True), encoding="utf-8")
        paths.append(str(path))
    return paths


def peft_defaults(recipe: Path, flags: list[str], length: int, seed: int, into: Path) -> dict:
    """results.json of a prompt trained by plain PEFT and Trainer as they come, evaluated by this project."""
    folder = into / f"peft-seed{seed}"
    if not (folder / "results.json").is_file():
        loaded = load_recipe(recipe, [*flags, f"--seed={seed}"])
        rows = prepare(loaded, ("train",)).encoded["train"].select_columns(["input_ids", "labels"])
        set_seed(seed)
        model = get_peft_model(base_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length))
        arguments = TrainingArguments(
            output_dir=str(folder / "trained"), max_steps=loaded.training.max_steps, seed=seed, save_strategy="no",
            per_device_train_batch_size=loaded.training.per_device_train_batch_size, use_cpu=True, report_to="none",
        )  # fmt: skip
        words = tokenizer()
        collator = DataCollatorForSeq2Seq(words, padding="longest")
        Trainer(model, arguments, train_dataset=rows, data_collator=collator, processing_class=words).train()
        model.save_pretrained(folder / "adapter")
        evaluate(loaded, str(folder / "adapter"), "test", folder)
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--train_rows", type=int, nargs="*", default=[])
    args, flags = parser.parse_known_args()
    into = ROOT / "runs" / "reference" / args.recipe.stem
    flags = [*flags, *drawn_rows(args.folder, into / "rows"), f"--model_name_or_path={MODEL}", "--save_strategy=no"]
    hard = hard_prompts(args.recipe, flags, into)
    paths = variants(args.recipe, hard, into)
    for count in args.train_rows:
        limited = [*flags, f"--max_train_samples={count}"]
        compared = compare(paths, limited, args.seeds, into / f"rows{count}")
        print(f"\n{count} training rows\n\n{comparison_text(compared)}", flush=True)
    if args.train_rows:
        return
    compared = compare(paths, flags, args.seeds, into / "compare")
    print(f"\n{describe_machine()}\n\n{comparison_text(compared)}\n", flush=True)
    tuned = json.loads((into / "compare" / f"prompt_tuning-seed{args.seeds[0]}" / "adapter_config.json").read_text())
    metric, table = compared["metric"], [("PEFT's defaults, seed", compared["metric"])]
    for seed in args.seeds:
        plain = peft_defaults(args.recipe, flags, tuned["num_virtual_tokens"], seed, into)
        table.append((str(seed), f"{plain['soft_prompt'][metric]:.1f}"))
    print_table(*table)


if __name__ == "__main__":
    main()
