"""Every method and start on the quickstart's questions, at equal steps: scores, trained numbers, seconds.

    python benchmarks/methods.py [NAME ...]        # trains what is not in runs/methods yet, some four minutes each

One seed (42), 40 steps of 8 rows, 140 test rows of unseen topics, template question_answering/instruction_last. "text"
is the quickstart's: two demonstrations with their instruction, 131 tokens.
"""

import json
import sys

import yaml
from common import ROOT, describe_machine, print_table

from prompt_tuning.config import load_recipe
from prompt_tuning.train import train

RUNS = ROOT / "runs" / "methods"
SHORT = {"init": None, "init_text": None, "num_virtual_tokens": "20"}
METHODS = {
    "prompt_tuning, text": {},
    "prompt_tuning, 20 sampled tokens": SHORT,
    "prefix_tuning, text": {"method": "prefix_tuning"},
    "p_tuning, 20 tokens": SHORT | {"method": "p_tuning"},
    "lora, r=8": {"method": "lora", "init": None, "init_text": None},
    "prompt_tuning, random, 20 tokens": SHORT | {"init": "random"},
    "prefix_tuning, 20 sampled tokens": SHORT | {"method": "prefix_tuning"},
    "cpt, text": {"method": "cpt", "init": None},
    "prompt_tuning, text, residual": {"residual": "true", "encoder_hidden_size": "128"},
    "prompt_tuning, frequent, 20 tokens": SHORT | {"init": "frequent"},
    "prompt_tuning, two random demonstrations": {"init": "demonstrations", "init_text": None},
    "prefix_tuning, projected, 20 tokens": SHORT | {"method": "prefix_tuning", "prefix_projection": "true"},
}


def results(name: str, changes: dict[str, str | None]) -> dict:
    """A method's results.json, after training it if that has not been done."""
    folder = RUNS / name.replace(", ", "_").replace(" ", "-")
    if not (folder / "results.json").is_file():
        quickstart = yaml.load((ROOT / "recipes/quickstart/qa.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)
        rate = {} if changes.get("method", "prompt_tuning") == "prompt_tuning" else {"learning_rate": None}
        settings = quickstart | rate | changes | {"output_dir": str(folder), "save_strategy": "no"}
        recipe = RUNS / f"{folder.name}.yaml"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value}), encoding="utf-8")
        train(load_recipe(recipe))
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def main() -> None:
    wanted = sys.argv[1:] or METHODS
    rows = [("method, start", "EM", "F1", "trained numbers", "learning rate", "training, s")]
    for name in wanted:
        found = results(name, METHODS[name])
        scores = found.get("soft_prompt") or found["lora"]
        trained = f"{found['trainable_parameters']:,}"
        saved = yaml.safe_load((RUNS / name.replace(", ", "_").replace(" ", "-") / "recipe.yaml").read_text())
        rows.append(
            (name, f"{scores['exact_match']:.1f}", f"{scores['f1']:.1f}", trained, saved["learning_rate"],
             f"{found['train_seconds']:.0f}")
        )  # fmt: skip
    print(f"{describe_machine()}\n")
    print_table(*rows)


if __name__ == "__main__":
    main()
