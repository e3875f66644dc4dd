"""Limit the private methods of Trainer that PromptTuningTrainer overrides to those with a reason and a test."""

import inspect
import re

from helpers.paths import ROOT
from transformers import Seq2SeqTrainer

from prompt_tuning import PromptTuningTrainer

OVERRIDDEN = {
    "_get_output_dir",  # Trainer asks it where a checkpoint goes, so one can be made elsewhere first.
    "_get_train_sampler",  # Trainer takes a sampler only from it, and loses its own order when a run resumes.
    "_load_best_model",  # Under DeepSpeed Trainer unpickles DeepSpeed's own files.
    "_load_from_checkpoint",  # Under FSDP Trainer loads PEFT's whole tensors into split ones.
    "_prepare_for_training",  # No hook runs before Trainer unpickles a checkpoint of DeepSpeed.
    "_save_checkpoint",  # Trainer writes file by file under the final name, so a kill leaves half of them.
    "_save_optimizer_and_scheduler",  # Under DeepSpeed Trainer writes DeepSpeed's pickles.
    "_set_signature_columns_if_needed",  # Trainer keeps only forward's columns, so errors cannot name rows.
}


def private_overrides(trainer):
    """Return the private methods of Seq2SeqTrainer that its subclasses define again."""
    names = set()
    for cls in trainer.__mro__[: trainer.__mro__.index(Seq2SeqTrainer)]:
        private = {name for name in vars(cls) if re.match("_[^_]", name)}
        names |= private & set(dir(Seq2SeqTrainer))
    return names


def test_eight_private_methods_of_trainer_are_overridden_and_name_the_test_that_needs_them():
    assert private_overrides(PromptTuningTrainer) == OVERRIDDEN
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests" / "training").glob("test_*.py"))
    for name in OVERRIDDEN:
        documented = inspect.getdoc(getattr(PromptTuningTrainer, name)) or ""
        needed_by = re.search(r"Needed by\s+(test_\w+)\.", documented)
        assert needed_by, name
        assert f"def {needed_by[1]}(" in tests, needed_by[1]
