"""The settings of the rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

LIMITS = {"train": "max_train_samples", "validation": "max_eval_samples", "test": "max_predict_samples"}
"""The setting that limits the number of rows of every split."""

SPLITS = tuple(LIMITS)


@dataclass
class DataArguments:
    """The rows. The names are those of transformers' example scripts."""

    task: Literal["question_answering", "summarization", "translation"] | None = field(
        default=None, metadata={"help": "The task, which decides the metrics and the usual columns."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub id of a data set, or a folder that save_to_disk wrote."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of that data set."})
    train_split: str = field(default="train", metadata={"help": "Name of the training split on the hub."})
    validation_split: str = field(default="validation", metadata={"help": "Name of the validation split on the hub."})
    test_split: str = field(default="test", metadata={"help": "Name of the test split on the hub."})
    train_file: str | None = field(
        default=None,
        metadata={"help": "Local json, jsonl, csv, tsv or parquet file, or a pattern such as rows/*.jsonl."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for the validation rows."})
    test_file: str | None = field(default=None, metadata={"help": "The same for the test rows."})
    validation_size: float | None = field(
        default=None,
        metadata={
            "help": "Cut the validation split from the training rows instead: a share below 1, or a number of rows. "
            "Rows with the same context, document or text to translate stay on one side."
        },
    )
    test_size: float | None = field(default=None, metadata={"help": "The same for the test split."})
    split_seed: int | None = field(
        default=None, metadata={"help": "validation_size, test_size: decides which rows they take (42)."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first N training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first N validation rows."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Use the first N test rows."})
    source_lang: str | None = field(default=None, metadata={"help": "Code of the language to translate from."})
    target_lang: str | None = field(default=None, metadata={"help": "Code of the language to translate into."})
    lang: str | None = field(
        default=None, metadata={"help": "Code of the language of the targets, for metrics; by default target_lang."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column to read as `document`."})
    summary_column: str | None = field(default=None, metadata={"help": "Column to read as `summary`."})
    context_column: str | None = field(default=None, metadata={"help": "Column to read as `context`."})
    question_column: str | None = field(default=None, metadata={"help": "Column to read as `question`."})
    answer_column: str | None = field(default=None, metadata={"help": "Column to read as `answers`."})
    messages_column: str | None = field(
        default=None,
        metadata={
            "help": "Column to read as `messages`: conversations, each a list of {role, content}, for the templates "
            "conversation/messages and conversation/plain."
        },
    )
    source_column: str | None = field(
        default=None,
        metadata={"help": "translation: column of the texts in source_lang, if the code is not its name."},
    )
    target_column: str | None = field(default=None, metadata={"help": "The same for the texts in target_lang."})
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Number of processes that encode rows."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read and encode training rows when they are needed, instead of all before training; needs "
            "max_steps."
        },
    )
    buffer_size: int | None = field(
        default=None,
        metadata={"help": "streaming: number of rows that are shuffled together (1000); 1 keeps their order."},
    )

    def __post_init__(self) -> None:
        """Make whole numbers of sizes that are numbers of rows."""
        for name in ("validation_size", "test_size"):
            size = getattr(self, name)
            if size is not None and size >= 1 and size % 1 == 0:
                setattr(self, name, int(size))

    @property
    def metric_language(self) -> str | None:
        """The code of the language that metrics split texts by."""
        return self.lang or self.target_lang
