"""A run that `train` wrote, whose prompt starts from demonstrations, and the page's view of it."""

import pytest
import yaml
from helpers.rows import HOSTILE, question_rows, write_jsonl

from prompt_tuning.cli.main import main
from prompt_tuning.page.trial import Trial


@pytest.fixture(scope="session")
def tried_folder(tmp_path_factory, model_folders):
    """Return the folder of a run over 24, 6 and 9 rows; the question of test row 0 is hostile."""
    folder = tmp_path_factory.mktemp("tried")
    for split, count, shift in (("train", 24, 0), ("validation", 6, 3), ("test", 9, 5)):
        rows = question_rows(count, shift)
        if split == "test":
            rows[0]["question"] = HOSTILE
        write_jsonl(folder / f"{split}.jsonl", rows)
    settings = {
        "model_name_or_path": str(model_folders["llama"]), "task": "question_answering",
        "template": "question_answering/plain", "init": "demonstrations", "max_source_tokens": 160,
        "max_target_tokens": 12, "output_dir": str(folder / "run"), "per_device_train_batch_size": 4, "max_steps": 4,
        "learning_rate": 0.3, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    settings |= {f"{split}_file": str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def trial(tried_folder):
    return Trial.load([str(tried_folder)])
