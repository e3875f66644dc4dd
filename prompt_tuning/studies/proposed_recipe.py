"""Write a proposed recipe as a file with comments."""

from __future__ import annotations

import math
import shlex
import textwrap
from pathlib import Path

from prompt_tuning.recipe.recipe import unmistakable_settings
from prompt_tuning.runs.measure import Costs
from prompt_tuning.studies.propose import Proposal
from prompt_tuning.support.text import counted, one_line
from prompt_tuning.support.trust import FLAG
from prompt_tuning.support.yaml_files import to_yaml

WIDTH = 118
SECONDS_IN_WORDS = ((7200, 3600, "hour"), (120, 60, "minute"), (0, 1, "second"))
"""The least seconds that are told in a unit, the seconds of the unit, and its name."""


def recipe_text(name: str, path: Path, proposal: Proposal, costs: Costs | None) -> str:
    """Return the recipe, with the reason of each setting above it and the next commands at its top.

    No name, and no text of the rows, can be anything but a comment or a quoted value.

    Args:
        name: the data, as the user named them.
        path: the file that the recipe is for.
        proposal: the settings and their reasons.
        costs: what the training was measured to take; None if nothing was measured.
    """
    settings = {key: value for key, value in (proposal.settings | proposal.set_by_user).items() if key != FLAG}
    lines = comment(f"Train a soft prompt for {name}. `prompt-tuning init` wrote this recipe.")
    for purpose, command in next_commands(path, proposal).items():
        lines += comment(f"{purpose}: {command}")
    if costs:
        lines += comment(cost_text(costs, int(settings.get("max_steps", 0))))
    for key, value in unmistakable_settings(settings).items():
        lines += comment(proposal.reasons.get(key, ""))
        lines.append(to_yaml({key: value}).rstrip("\n"))
    return "\n".join(lines) + "\n"


def next_commands(path: Path, proposal: Proposal) -> dict[str, str]:
    """Return what to do next, as commands by their purpose."""
    recipe, run = shlex.quote(str(path)), shlex.quote(str(proposal["output_dir"]))
    suffix = Path(str(proposal["train_file"])).suffix if proposal["train_file"] else ".jsonl"
    return {
        "Check": f"prompt-tuning check {recipe}",
        "Train": f"prompt-tuning train {recipe}",
        "Look at it": f"prompt-tuning try {run}",
        "Predict": f"prompt-tuning predict --adapter {run} --input new{suffix} --output predicted{suffix}",
        "Share": f"prompt-tuning push {run} --repo_id USER/NAME",
    }


def cost_text(costs: Costs, max_steps: int) -> str:
    """Return in words what a few steps and predictions on this machine say about the whole run."""
    step = costs.training["seconds_per_step"]
    evaluated = costs.rows.get("test", costs.rows.get("validation", 0))
    text = f"Measured here: {step:.2g} s a step"
    if max_steps > 0:
        text += f", so that {counted(max_steps, 'step')} take about {_duration(step * max_steps)}"
    # The hard prompt is evaluated too.
    predicting = 2 * evaluated * costs.seconds_per_prediction
    text += f"; at most about {_duration(predicting)} to evaluate {counted(evaluated, 'row')} twice"
    if "added_memory_bytes" in costs.training:
        text += f"; {costs.training['added_memory_bytes'] / 2**20:,.0f} MiB of memory beside the model"
    return f"{text}. The prompt has {counted(costs.num_virtual_tokens, 'virtual token')}."


def comment(text: str) -> list[str]:
    """Return a text as lines of a comment; no lines for no text."""
    return textwrap.wrap(one_line(text), WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)


def _duration(seconds: float) -> str:
    unit, name = next((unit, name) for least, unit, name in SECONDS_IN_WORDS if seconds >= least)
    return counted(math.ceil(seconds / unit), name)
