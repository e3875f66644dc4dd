"""Train on closed questions by a loss over the choices of each row, instead of the tokens of its target.

The probability of a choice is the softmax of the normalised log-likelihoods of all choices of its row. For two choices
the cross entropy is the binary one, -sum t log p + (1 - t) log(1 - p). The end after a choice does not count, as when
choices are scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from prompt_tuning.encoding.batching import source_rows
from prompt_tuning.engine.dispatch import has_prompt
from prompt_tuning.engine.likelihood import choice_sizes
from prompt_tuning.errors import DataError, RecipeError
from prompt_tuning.training.evaluation import trains_several_tasks
from prompt_tuning.training.trainer import PromptTuningTrainer

COLUMNS = ("row", "choices", "choice_ids", "target_choice")


class Choices(NamedTuple):
    """The token ids of a row's choices, the numbers that divide their log-likelihoods, and which one is right.

    `weight` is what the loss of the row is multiplied by.
    """

    ids: list[list[int]]
    sizes: list[int]
    target: int
    weight: float = 1.0


class ChoiceTrainer(PromptTuningTrainer):
    """Train a causal model to choose the right answer of each row, from rows that `encode` makes with answer_choices.

    Unlike PromptTuningTrainer, a batch of B rows with C choices is run as B * C rows. The engine reads a source that
    rows share once. The loss is a mean over rows. Evaluations are the same, and so is their loss.

    Args:
        *args: as for PromptTuningTrainer.
        choice_loss: `choices`, the cross entropy over a row's choices; `brier`, the mean over a row's choices of the
            squared error of their probabilities.
        class_weights: balanced multiplies the loss of a row by rows / (targets * rows with its target), counted over
            all training rows (King & Zeng 2001), so that rare targets count as much as frequent ones.
        **kwargs: as for PromptTuningTrainer. `choice_normalization` also divides likelihoods in the loss.

    Raises:
        RecipeError: the loss does not hold for the model or another argument.
    """

    def __init__(
        self,
        *args: Any,
        choice_loss: Literal["choices", "brier"] = "choices",
        class_weights: Literal["none", "balanced"] = "none",
        **kwargs: Any,
    ) -> None:
        """Check the arguments and prepare model and tokenizer."""
        super().__init__(*args, **kwargs)
        self.choice_loss = choice_loss
        self.class_weights = class_weights
        obstacles = {
            "an encoder-decoder model": not self._is_causal,
            "a prompt of several tasks": trains_several_tasks(self.model),
            "compute_loss_func": self.compute_loss_func is not None,
            "teacher": self.teacher is not None,
            "label_smoothing_factor": self.args.label_smoothing_factor,
            "choice_normalization unconditional": self.choice_normalization == "unconditional",
        }
        for obstacle in filter(obstacles.get, obstacles):
            raise RecipeError(f"choice_loss {choice_loss}: it does not hold for {obstacle}. Leave out one of them")

    @cached_property
    def choices(self) -> dict[int, Choices]:
        """The choices of each training row, by its number.

        Raises:
            DataError: a column is missing.
        """
        for column in COLUMNS:
            if column not in self.train_dataset.column_names:
                raise DataError(f"training rows have no column {column}. Encode them with answer_choices")
        columns = [self.train_dataset[column] for column in COLUMNS]
        targets = Counter(texts[target] for _, texts, _, target in zip(*columns, strict=True))
        choices = {}
        for number, texts, ids, target in zip(*columns, strict=True):
            weight = 1.0
            if self.class_weights == "balanced":
                weight = targets.total() / (len(targets) * targets[texts[target]])
            choices[number] = Choices(ids, choice_sizes(texts, ids, self.choice_normalization), target, weight)
        return choices

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the loss over choices in training, and the loss of PromptTuningTrainer in an evaluation.

        The sum over rows is divided by `num_items_in_batch`, the rows of the whole accumulated batch. By default it is
        divided by the rows of this batch.
        """
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        of_rows = self.choices
        choices = [of_rows[row] for row in inputs["row"].tolist()]
        batch = choice_batch(inputs, choices)
        labels = batch["labels"]
        if has_prompt(self.model):
            outputs = model(**batch)
            logits = outputs.logits  # `[targets, V]`
        else:
            outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            logits = outputs.logits[:, :-1][labels[:, 1:] != -100]
        scores = choice_scores(logits, labels[labels != -100], choices)
        targeted = (inputs["labels"] != -100).any(1)
        total = losses_of_rows(scores, choices, self.choice_loss)[targeted].sum()
        loss = total / (targeted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)
        loss = self._over_processes(loss, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Return the batches of one step and their number of rows, since each row keeps only its first label."""
        return super().get_batch_samples(map(_first_label_only, epoch_iterator), num_batches, device)


def choice_batch(inputs: dict[str, torch.Tensor], choices: Sequence[Choices]) -> dict[str, torch.Tensor]:
    """Return each row of a batch once with every choice as its target: `[B * C, T]`, padded on the right.

    Args:
        inputs: a batch of causal rows; one without a target is a repeated row of another process.
        choices: of these rows.
    """
    device = inputs["input_ids"].device
    rows, labels = [], []
    targeted = (inputs["labels"] != -100).any(1).tolist()
    for source, is_targeted, of_row in zip(source_rows(inputs), targeted, choices, strict=True):
        # All tokens of a row without a target look like its source, and a choice after them could be out of place.
        prefix = source if is_targeted else source[:1]
        for ids in of_row.ids:
            rows.append(torch.tensor([*prefix, *ids]))
            labels.append(torch.tensor([-100] * len(prefix) + ids))
    masks = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": pad_sequence(rows, batch_first=True).to(device),
        "attention_mask": pad_sequence(masks, batch_first=True).to(device),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100).to(device),
    }


def choice_scores(logits: torch.Tensor, tokens: torch.Tensor, choices: Sequence[Choices]) -> torch.Tensor:
    """Return the normalised log-likelihoods `[B, C]` of choices; -inf where a row has fewer than another.

    Args:
        logits: `[targets, V]`, which predict the tokens of all choices of all rows.
        tokens: `[targets]`.
        choices: of the B rows.
    """
    likelihoods = -F.cross_entropy(logits.float(), tokens.to(logits.device), reduction="none")
    lengths = [len(ids) for of_row in choices for ids in of_row.ids]
    sizes = torch.tensor([size for of_row in choices for size in of_row.sizes], device=logits.device)
    sums = torch.stack([part.sum() for part in likelihoods.split(lengths)]) / sizes
    of_rows = sums.split([len(of_row.ids) for of_row in choices])
    return pad_sequence(of_rows, batch_first=True, padding_value=-torch.inf)


def losses_of_rows(
    scores: torch.Tensor, choices: Sequence[Choices], loss: Literal["choices", "brier"]
) -> torch.Tensor:
    """Return the loss `[B]` of each row by the scores `[B, C]` of its choices, times the weight of the row."""
    targets = torch.tensor([of_row.target for of_row in choices], device=scores.device)
    weights = scores.new_tensor([of_row.weight for of_row in choices])
    if loss == "choices":
        return weights * F.cross_entropy(scores, targets, reduction="none")
    errors = scores.softmax(-1) - F.one_hot(targets, scores.shape[1])
    return weights * errors.square().sum(-1) / scores.isfinite().sum(-1)


def _first_label_only(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch in which each row has only its first label, so that Trainer counts rows, not tokens."""
    labels = batch["labels"]
    return batch | {"labels": labels.masked_fill((labels != -100).cumsum(1) > 1, -100)}
