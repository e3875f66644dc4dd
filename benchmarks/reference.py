"""A reference recipe against what it should beat: hard prompt, few-shot prompt, LoRA, and PEFT's defaults.

    python benchmarks/reference.py RECIPE FOLDER [--seeds 42 43 44] [--peft_seeds 42] [--key=value ...]
    python benchmarks/reference.py RECIPE FOLDER --peft_alone 12             # PEFT's defaults with 12 virtual tokens
    python benchmarks/reference.py RECIPE FOLDER --train_rows 16 64 256      # a learning curve, drawn

FOLDER holds train.jsonl, validation.jsonl and test.jsonl; 200 test and 100 validation rows are drawn from them once
(seed 0), all training rows are used; with --longest N only questions that have at most N tokens with their passage.
First `rank` chooses the best few-shot prompt and the best zero-shot one on the validation rows, unless --few_shot and
--zero_shot name those of an earlier rank; then `compare` trains and evaluates, at equal steps, in
runs/reference/NAME, where what is there already is not run again. "peft" is plain PEFT and Trainer with their defaults
(random prompt, learning rate 5e-5, as many virtual tokens), evaluated by this project. A learning curve has the
few-shot prompt, the recipe and LoRA alone; its smaller sets of rows, drawn at random, are part of the larger.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import yaml
from common import MODEL, ROOT, describe_machine, drawn_rows, print_table, trained_by_peft
from transformers import set_seed

from prompt_tuning.data.loading import SPLITS
from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import changed_settings
from prompt_tuning.runs.evaluate import evaluate
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.studies.compare import compare, comparison_text
from prompt_tuning.studies.figures import new_figure, write_png
from prompt_tuning.studies.rank import rank
from prompt_tuning.studies.rank_table import rank_text

ROWS = {"train": None, "validation": 100, "test": 200}
HARD = {"few_shot": ([2, 4], {"max_source_tokens": "1536"}), "zero_shot": ([0], {})}
OF_PROMPTS = ("init", "init_text", "init_demonstrations", "num_virtual_tokens", "learning_rate")


def hard_prompts(recipe: Path, names: list[str], known: dict[str, dict]) -> dict[str, dict]:
    """Rank the zero-shot and few-shot prompts on the validation rows, and return the best ones that are not known."""
    found = {}
    for name in names:
        counts, changes = HARD[name]
        if name in known:
            found[name] = {"method": "none"} | known[name] | changes
            continue
        folder = recipe.parent / f"rank_{name}"
        ranked = rank(str(recipe), [f"--{key}={value}" for key, value in changes.items()], folder, counts=counts)
        print(f"\n{name}\n\n{rank_text(ranked)}", flush=True)
        winner = yaml.safe_load((folder / "winner.yaml").read_text(encoding="utf-8"))
        chosen = {key: winner[key] for key in ("template", "num_demonstrations", "demonstration_selection", "seed")}
        found[name] = {"method": "none"} | chosen | changes
    return found


def variants(recipe: Path, hard: dict[str, dict]) -> list[str]:
    """Recipe files of all that is compared, the recipe itself first."""
    settings = yaml.load(recipe.read_text(encoding="utf-8"), yaml.BaseLoader)
    started = {key: value for key, value in settings.items() if key not in OF_PROMPTS}
    parts = {
        "prompt_tuning": settings,
        "lora": started | {"method": "lora"},
        **{name: started | changes for name, changes in hard.items()},
    }
    return [str(written(recipe.parent / f"{name}.yaml", part)) for name, part in parts.items()]


def written(recipe: Path, settings: dict) -> Path:
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return recipe


def peft_defaults(recipe: Path, length: int, seed: int) -> dict:
    """results.json of a prompt trained by plain PEFT and Trainer as they come, evaluated by this project."""
    folder, loaded = recipe.parent / f"peft{length}-seed{seed}", load_recipe(recipe, [f"--seed={seed}"])
    if (folder / "results.json").is_file():
        known = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        if changed := changed_settings(known["recipe"], json.loads(json.dumps(loaded.resolved()))):
            raise SystemExit(f"{folder} was run with other settings ({', '.join(changed)}); remove it")
        return known
    rows = prepare(loaded, ("train",)).encoded["train"]
    steps, batch = loaded.training.max_steps, loaded.training.per_device_train_batch_size
    set_seed(seed)
    adapter = folder / "adapter"
    trained_by_peft(rows, length, adapter, max_steps=steps, per_device_train_batch_size=batch, seed=seed)
    evaluate(loaded, str(adapter), "test", folder)
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def print_peft(recipe: Path, length: int, seeds: list[int]) -> None:
    """Return the scores of PEFT's defaults on the recipe's test rows."""
    metric = MAIN_METRIC[load_recipe(recipe).data.task]
    scores = {seed: peft_defaults(recipe, length, seed)["soft_prompt"][metric] for seed in seeds}
    print_table(("PEFT's defaults, seed", metric), *((str(seed), f"{score:.1f}") for seed, score in scores.items()))


def learning_curve(paths: list[str], counts: list[int], seeds: list[int], into: Path) -> None:
    """Train on so many rows, print each table, and draw the scores in curve.png."""
    figure = new_figure("curve.png", 6, 4)
    tables = {}
    for count in counts:
        compared = compare(paths, [f"--max_train_samples={count}"], seeds, into / f"rows{count}")
        tables[count] = compared
        print(f"\n{count} training rows\n\n{comparison_text(compared)}", flush=True)
    axes = figure.subplots()
    for number, name in enumerate(compared["parts"]):
        parts = [each["parts"][name] for each in tables.values()]
        scores = [part["score"] for part in parts]
        around = [[part["score"] - part["low"] for part in parts], [part["high"] - part["score"] for part in parts]]
        places = [count * 1.04**number for count in tables]  # beside each other, so that no interval hides another
        axes.errorbar(places, scores, np.maximum(around, 0), fmt="o-", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(tables), [f"{count:,}" for count in tables])
    axes.set(xlabel="training rows", ylabel=f"{compared['metric']}, 95 % interval")
    axes.grid(alpha=0.3)
    axes.legend()
    write_png(figure, into / "curve.png")


def main() -> None:
    opening, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=opening, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path, help="with train.jsonl, validation.jsonl and test.jsonl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="of everything that is trained")
    parser.add_argument("--peft_seeds", type=int, nargs="*", help="of PEFT's defaults (default: those of --seeds)")
    parser.add_argument("--peft_alone", type=int, metavar="P", help="nothing but PEFT's defaults, P virtual tokens")
    parser.add_argument("--train_rows", type=int, nargs="*", default=[], help="draw a learning curve of so many rows")
    parser.add_argument("--longest", type=int, help="only questions of at most so many tokens with their passage")
    parser.add_argument("--few_shot", nargs=2, metavar=("TEMPLATE", "COUNT"), help="as an earlier rank found it")
    parser.add_argument("--zero_shot", metavar="TEMPLATE", help="as an earlier rank found it")
    args, flags = parser.parse_known_args()
    known = {}
    if args.zero_shot:
        known["zero_shot"] = {"template": args.zero_shot, "num_demonstrations": 0, "demonstration_selection": "random"}
    if args.few_shot:
        known["few_shot"] = {"template": args.few_shot[0], "num_demonstrations": int(args.few_shot[1])}
    into, rows = ROOT / "runs" / "reference" / args.recipe.stem, ROWS
    if args.train_rows:
        into, rows = into / "curve", ROWS | {"train": max(args.train_rows)}
    settings = yaml.load(args.recipe.read_text(encoding="utf-8"), yaml.BaseLoader)
    settings |= drawn_rows(args.folder, into / "rows", rows, args.longest)
    settings |= {"model_name_or_path": str(MODEL.relative_to(ROOT)), "save_strategy": "no"}
    # In the file, not as flags, which would win over the template that a hard prompt was chosen with.
    settings |= dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    recipe = written(into / "recipe.yaml", settings)
    prepare(load_recipe(recipe), SPLITS)  # what is wrong with it is told now, not after an hour of ranking
    peft_seeds = args.seeds if args.peft_seeds is None else args.peft_seeds
    if args.peft_alone:
        print(describe_machine(), flush=True)
        print_peft(recipe, args.peft_alone, peft_seeds)
        return
    paths = variants(recipe, hard_prompts(recipe, ["few_shot"] if args.train_rows else list(HARD), known))
    if args.train_rows:
        learning_curve(paths, args.train_rows, args.seeds, into)
        return
    compared = compare(paths, [], args.seeds, into / "compare")
    print(f"\n{describe_machine()}\n\n{comparison_text(compared)}\n", flush=True)
    tuned = json.loads((into / "compare" / f"prompt_tuning-seed{args.seeds[0]}" / "adapter_config.json").read_text())
    if peft_seeds:
        print_peft(recipe, tuned["num_virtual_tokens"], peft_seeds)


if __name__ == "__main__":
    main()
