"""Import the scripts of benchmarks/."""

import importlib
import sys

from transformers.utils import logging

from helpers.paths import ROOT


def load_benchmark(name):
    """Return a script as a module. Its import makes transformers silent, which other tests are not to be."""
    verbosity = logging.get_verbosity()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
