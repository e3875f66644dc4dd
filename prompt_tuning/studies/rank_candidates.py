"""Choose the candidates of a ranking, and prepare the validation rows as every candidate writes them.

A candidate is a template, a number of demonstrations, and the seed that draws them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from datasets import Dataset

from prompt_tuning.errors import PromptTuningError, first_line
from prompt_tuning.metrics.language import primary_language
from prompt_tuning.recipe.recipe import Recipe
from prompt_tuning.runs.prepare import Prepared, prepare
from prompt_tuning.templates.loading import language_of_template
from prompt_tuning.templates.template import Template, load_templates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A hard prompt to rank.

    Args:
        template: its name, as `Template.load` takes it.
        num_demonstrations: training rows that are shown before a source.
        seed: draws the demonstrations.
        selection: how demonstrations are chosen, as `demonstration_selection` of a recipe.
    """

    template: str
    num_demonstrations: int
    seed: int
    selection: Literal["random", "balanced", "bm25"]

    def __str__(self) -> str:
        """Return the name of the candidate in tables and files."""
        if not self.num_demonstrations:
            return self.template
        seed = f", seed {self.seed}" if self.selection != "bm25" else ""
        return f"{self.template}, {self.num_demonstrations} shown{seed}"


def choose_templates(recipe: Recipe, names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return the names of the templates to rank, and why each of the others is left out.

    Args:
        recipe: its own template is ranked if no names are given.
        names: as `load_templates` takes them. By default all templates that are shipped for the task, in English and
            in the language of the rows, or those for conversations, except those that are answered by choosing: to
            choose is easier than to write.
    """
    templates: dict[str, Template] = {}
    left_out: dict[str, str] = {}
    if not names:
        templates[str(recipe.prompt.template)] = Template.load(str(recipe.prompt.template))
    shipped = "conversation" if recipe.data.messages_column else str(recipe.data.task)
    for name in names or [shipped]:
        readable, unreadable = load_templates(name)
        templates |= readable
        left_out |= unreadable
    data = recipe.data
    languages = {"en", *map(primary_language, (data.lang, data.source_lang, data.target_lang))}
    chosen = []
    for name, template in templates.items():
        is_default = not names and name != recipe.prompt.template
        if is_default and language_of_template(name) not in languages:
            continue
        by_choosing = template.answer_choices and recipe.prompt.score_choices
        if by_choosing and is_default:
            left_out[name] = "it is answered by choosing, not by writing; name it in --templates to rank it"
        else:
            chosen.append(name)
    return chosen, left_out


def make_candidates(
    recipe: Recipe, templates: Sequence[str], counts: Sequence[int], seeds: Sequence[int]
) -> dict[str, Candidate]:
    """Combine templates, numbers of demonstrations and seeds; return the candidates by name.

    A combination in which the seed draws nothing has one candidate, with the first seed.

    Args:
        recipe: says how demonstrations are selected.
        templates: their names.
        counts: numbers of demonstrations.
        seeds: each draws the demonstrations anew.
    """
    candidates = {}
    for template in templates:
        for count in counts:
            selection = recipe.prompt.demonstration_selection if count else "random"
            draws = count > 0 and selection != "bm25"
            for seed in seeds if draws else seeds[:1]:
                candidate = Candidate(template, count, seed, selection)
                candidates[str(candidate)] = candidate
    return candidates


def prepare_candidates(
    recipe: Recipe, candidates: Mapping[str, Candidate], num_rows: int | None
) -> tuple[dict[str, Prepared], dict[str, str]]:
    """Encode the validation rows as every candidate writes them, and return why the others do not fit.

    Args:
        recipe: its model, data and limits hold for all candidates.
        candidates: by name.
        num_rows: the first validation rows, or None for all.
    """
    prepared: dict[str, Prepared] = {}
    left_out: dict[str, str] = {}
    for name, candidate in candidates.items():
        logger.info("%s", name)
        try:
            encoded = prepare(_candidate_recipe(recipe, candidate, num_rows), ("validation",))
        except PromptTuningError as error:
            left_out[name] = first_line(error)
            continue
        first = next(iter(prepared), name)
        reason = _difference(encoded, prepared.get(first, encoded), first)
        if reason:
            left_out[name] = reason
        else:
            prepared[name] = encoded
    return prepared, left_out


def validation_rows(prepared: Prepared) -> Dataset:
    """Return the encoded validation rows of a candidate."""
    return prepared.encoded["validation"]


def _difference(prepared: Prepared, first: Prepared, first_name: str) -> str | None:
    """Say why a candidate cannot be compared with the first one; return None if it can."""
    if list(validation_rows(prepared)["references"]) != list(validation_rows(first)["references"]):
        return f"it has other references than {first_name}; rank it alone"
    if prepared.recipe.model.api_name is None and _targets(prepared) != _targets(first):
        return f"it has other targets than {first_name}, so that likelihoods cannot be compared; rank it alone"
    return None


def _targets(prepared: Prepared) -> list[str]:
    encoder = prepared.encoder
    return [encoder.template.render_target(row, encoder.languages)[0] for row in prepared.rows["validation"]]


def _candidate_recipe(recipe: Recipe, candidate: Candidate, num_rows: int | None) -> Recipe:
    """Return the recipe that evaluates the hard prompt of a candidate."""
    prompt = replace(
        recipe.prompt,
        method="none",
        template=candidate.template,
        num_demonstrations=candidate.num_demonstrations,
        demonstration_selection=candidate.selection,
    )
    limits = [limit for limit in (num_rows, recipe.data.max_eval_samples) if limit is not None]
    data = replace(recipe.data, max_eval_samples=min(limits, default=None))
    training = copy.copy(recipe.training)
    training.seed = candidate.seed
    return replace(recipe, data=data, prompt=prompt, training=training)
