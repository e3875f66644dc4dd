"""Compare a reference recipe with a hard prompt, a few-shot prompt, LoRA, and PEFT's defaults.

    python benchmarks/reference.py RECIPE FOLDER [--seeds 42 43 44] [--peft_seeds 42] [--key=value ...]
    python benchmarks/reference.py RECIPE FOLDER --peft_alone 12             # PEFT's defaults with 12 virtual tokens
    python benchmarks/reference.py RECIPE FOLDER --train_rows 16 64 256      # draw a learning curve

FOLDER holds train.jsonl, validation.jsonl and test.jsonl. All training rows are used; 200 test and 100 validation rows
are drawn once (seed 0). --longest N takes only questions that have at most N tokens with their passage. First `rank`
chooses the best few-shot prompt and the best zero-shot one on the validation rows, unless --few_shot and --zero_shot
name those of an earlier rank. Then `compare` trains and evaluates at equal steps in runs/reference/NAME; a run that is
finished is not repeated. "peft" is plain PEFT and Trainer with their defaults (random prompt, learning rate 5e-5, as
many virtual tokens), evaluated by this project. A learning curve has only the few-shot prompt, the recipe and LoRA.
Its smaller sets of rows, drawn at random, are part of the larger.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import yaml
from common import MODEL, ROOT, describe_machine, drawn_rows, print_table, trained_by_peft
from peft import PromptTuningConfig
from transformers import set_seed

from prompt_tuning.data.loading import SPLITS
from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.recipe.recipe import changed_settings
from prompt_tuning.runs.evaluate import evaluate
from prompt_tuning.runs.prepare import prepare
from prompt_tuning.studies.compare import compare
from prompt_tuning.studies.compare_table import comparison_text
from prompt_tuning.studies.figures import new_figure, write_png
from prompt_tuning.studies.rank import rank
from prompt_tuning.studies.rank_table import rank_text

ROWS = {"train": None, "validation": 100, "test": 200}
HARD = {"few_shot": ([2, 4], {"max_source_tokens": "1536"}), "zero_shot": ([0], {})}
PROMPT_SETTINGS = ("init", "init_text", "init_demonstrations", "num_virtual_tokens", "learning_rate")


def hard_prompts(recipe: Path, names: list[str], ranked_before: dict[str, dict]) -> dict[str, dict]:
    """Return the settings of the best hard prompts; rank on the validation rows if they were not ranked before."""
    prompts = {}
    for name in names:
        counts, changes = HARD[name]
        if name in ranked_before:
            prompts[name] = {"method": "none"} | ranked_before[name] | changes
            continue
        folder = recipe.parent / f"rank_{name}"
        ranked = rank(str(recipe), [f"--{key}={value}" for key, value in changes.items()], folder, counts=counts)
        print(f"\n{name}\n\n{rank_text(ranked)}", flush=True)
        winner = yaml.safe_load((folder / "winner.yaml").read_text(encoding="utf-8"))
        chosen = {key: winner[key] for key in ("template", "num_demonstrations", "demonstration_selection", "seed")}
        prompts[name] = {"method": "none"} | chosen | changes
    return prompts


def variants(recipe: Path, hard: dict[str, dict]) -> list[str]:
    """Write the recipes that are compared, and return their paths with the given one first."""
    settings = yaml.load(recipe.read_text(encoding="utf-8"), yaml.BaseLoader)
    without_prompt = {key: value for key, value in settings.items() if key not in PROMPT_SETTINGS}
    parts = {"prompt_tuning": settings, "lora": without_prompt | {"method": "lora"}}
    for name, changes in hard.items():
        parts[name] = without_prompt | changes
    return [str(write_recipe(recipe.parent / f"{name}.yaml", part)) for name, part in parts.items()]


def write_recipe(recipe: Path, settings: dict) -> Path:
    """Write settings to a recipe and return its path."""
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return recipe


def peft_defaults(recipe: Path, length: int, seed: int) -> dict:
    """Return the results.json of a prompt trained by plain PEFT and Trainer, evaluated by this project."""
    folder = recipe.parent / f"peft{length}-seed{seed}"
    loaded = load_recipe(recipe, [f"--seed={seed}"])
    if (folder / "results.json").is_file():
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        changed = changed_settings(results["recipe"], json.loads(json.dumps(loaded.resolved())))
        if changed:
            raise SystemExit(f"{folder} was run with other settings ({', '.join(changed)}); remove it")
        return results
    rows = prepare(loaded, ("train",)).encoded["train"]
    steps, batch = loaded.training.max_steps, loaded.training.per_device_train_batch_size
    set_seed(seed)
    adapter = folder / "adapter"
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
    trained_by_peft(rows, config, adapter, max_steps=steps, per_device_train_batch_size=batch, seed=seed)
    evaluate(loaded, str(adapter), "test", folder)
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def print_peft(recipe: Path, length: int, seeds: list[int]) -> None:
    """Print the scores of PEFT's defaults on the recipe's test rows."""
    metric = MAIN_METRIC[load_recipe(recipe).data.task]
    scores = {seed: peft_defaults(recipe, length, seed)["soft_prompt"][metric] for seed in seeds}
    print_table(("PEFT's defaults, seed", metric), *((str(seed), f"{score:.1f}") for seed, score in scores.items()))


def learning_curve(paths: list[str], counts: list[int], seeds: list[int], into: Path) -> None:
    """Train on each number of rows, print its table, and draw the scores in curve.png."""
    figure = new_figure("curve.png", 6, 4)
    tables = {}
    for count in counts:
        compared = compare(paths, [f"--max_train_samples={count}"], seeds, into / f"rows{count}")
        tables[count] = compared
        print(f"\n{count} training rows\n\n{comparison_text(compared)}", flush=True)
    axes = figure.subplots()
    for number, name in enumerate(compared["parts"]):
        parts = [table["parts"][name] for table in tables.values()]
        scores = [part["score"] for part in parts]
        below = [part["score"] - part["low"] for part in parts]
        above = [part["high"] - part["score"] for part in parts]
        # Points of one number of rows lie beside each other, so that no interval hides another.
        places = [count * 1.04**number for count in tables]
        axes.errorbar(places, scores, np.maximum([below, above], 0), fmt="o-", capsize=3, label=name)
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="seeds of every training")
    parser.add_argument("--peft_seeds", type=int, nargs="*", help="seeds of PEFT's defaults (default: --seeds)")
    parser.add_argument("--peft_alone", type=int, metavar="P", help="run only PEFT's defaults, with P virtual tokens")
    parser.add_argument("--train_rows", type=int, nargs="*", default=[], help="numbers of rows of a learning curve")
    parser.add_argument("--longest", type=int, help="most tokens of a question with its passage")
    parser.add_argument("--few_shot", nargs=2, metavar=("TEMPLATE", "COUNT"), help="the winner of an earlier rank")
    parser.add_argument("--zero_shot", metavar="TEMPLATE", help="the winner of an earlier rank")
    args, flags = parser.parse_known_args()
    ranked = {}
    if args.zero_shot:
        ranked["zero_shot"] = {
            "template": args.zero_shot,
            "num_demonstrations": 0,
            "demonstration_selection": "random",
        }
    if args.few_shot:
        ranked["few_shot"] = {"template": args.few_shot[0], "num_demonstrations": int(args.few_shot[1])}
    name = args.recipe.stem + (f"-longest{args.longest}" if args.longest else "")
    into = ROOT / "runs" / "reference" / name
    rows = ROWS
    if args.train_rows:
        into = into / "curve"
        rows = ROWS | {"train": max(args.train_rows)}
    settings = yaml.load(args.recipe.read_text(encoding="utf-8"), yaml.BaseLoader)
    settings |= drawn_rows(args.folder, into / "rows", rows, args.longest)
    settings |= {"model_name_or_path": str(MODEL.relative_to(ROOT)), "save_strategy": "no"}
    # Flags go into the file, because as flags they would replace the template of a hard prompt.
    settings |= dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    recipe = write_recipe(into / "recipe.yaml", settings)
    # Errors are raised now, not after an hour of ranking.
    prepare(load_recipe(recipe), SPLITS)
    peft_seeds = args.seeds if args.peft_seeds is None else args.peft_seeds
    if args.peft_alone:
        print(describe_machine(), flush=True)
        print_peft(recipe, args.peft_alone, peft_seeds)
        return
    paths = variants(recipe, hard_prompts(recipe, ["few_shot"] if args.train_rows else list(HARD), ranked))
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
