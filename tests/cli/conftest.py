"""A finished run for the tests of the commands."""

import pytest

from prompt_tuning.cli.main import main


@pytest.fixture
def run(recipe_file, tmp_path):
    """Return the folder of a run that `train` wrote."""
    assert main(["train", str(recipe_file()), "--save_steps", "2", "--learning_rate", "0.3"]) == 0
    return tmp_path / "run"
