"""The settings that the recipe of each task in `tasks` sets; the multitask recipe sets everything else."""

from dataclasses import fields

from prompt_tuning.arguments.data_args import DataArguments

ENCODING_SETTINGS = (
    "template", "metrics", "truncate", "max_source_tokens", "max_target_tokens", "drop_overlong", "drop_empty",
    "score_choices", "choice_normalization", "num_demonstrations", "demonstration_selection",
)  # fmt: skip
GENERATION_SETTINGS = ("generation_max_length", "generation_num_beams")
TASK_SETTINGS = frozenset(field.name for field in fields(DataArguments)).union(ENCODING_SETTINGS, GENERATION_SETTINGS)
