"""Make the folder of a finished run with made-up predictions, without a model."""

import json

import yaml

from helpers.rows import PLACES, write_jsonl

LEAKAGE = dict.fromkeys(("same_target", "other_target", "near", "shared_passages", "demonstrated", "initial_text"), 0)


def make_run(folder, names=("hard_prompt", "soft_prompt"), count=12, changes=None, results=None, **recipe):
    """Return the folder of a finished run; `changes` replaces values by row number."""
    rows = []
    for number in range(count):
        place = PLACES[number % 10]
        row = {
            "row": number,
            "source": f"Context: {'It is a long story. ' * (number % 4)}Ada lives in {place}.\nWhere does Ada live?",
            "references": [place, place],
            "source_tokens": 20 + 3 * number,
            "cut_tokens": 7 * (number % 3 == 1),
        }
        answers = {"hard_prompt": "" if number % 2 else f"in {place}", names[-1]: "Rome" if number == 4 else place}
        rows.append(row | {name: answers[name] for name in names} | (changes or {}).get(number, {}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions").mkdir(exist_ok=True)
    write_jsonl(folder / "predictions" / "test.jsonl", rows)
    facts = {
        "task": "question_answering", "split": "test", "rows": count, "cut_rows": count // 3, "seed": 1,
        "model": "tiny", "template": "question_answering/plain", "decoding": {"max_new_tokens": 9, "num_beams": 1},
        "versions": {"torch": "2"}, "leakage": {"test": LEAKAGE | {"rows": count, "near": 2, "shared_passages": 3}},
    }  # fmt: skip
    scores = {name: {"f1": 50.0, "exact_match": 25.0} for name in names}
    (folder / "results.json").write_text(json.dumps(facts | scores | (results or {})))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"task": "question_answering"} | recipe, allow_unicode=True))
    return folder
