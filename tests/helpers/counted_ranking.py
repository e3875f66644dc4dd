"""Rank as `prompt-tuning rank` does, and write how many pairs of candidate and row this process scored to a file.

-m helpers.counted_ranking FOLDER RECIPE [options], which writes FOLDER/RANK.txt.
"""

import os
import sys
from pathlib import Path

from prompt_tuning.cli.main import main
from prompt_tuning.studies import rank_likelihoods

likelihoods = rank_likelihoods.log_likelihoods_without_end
scored = []


def counted(model, places):
    scored.extend(places)
    return likelihoods(model, places)


rank_likelihoods.log_likelihoods_without_end = counted
code = main(["rank", *sys.argv[2:]])
(Path(sys.argv[1]) / f"{os.environ['RANK']}.txt").write_text(str(len(scored)))
sys.exit(code)
