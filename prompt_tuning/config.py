"""A recipe: one flat YAML file of flags, parsed once together with the command line.

Each `key: value` pair becomes `--key=value`, overrides follow, and one `HfArgumentParser` types all of it, so YAML and
flags mean the same. This module imports neither torch nor transformers until a recipe is parsed.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import yaml

from prompt_tuning.arguments import DataArguments, ModelArguments, PromptArguments
from prompt_tuning.errors import RecipeError
from prompt_tuning.hub import is_hub_id
from prompt_tuning.metrics import MAIN_METRIC

if TYPE_CHECKING:
    from prompt_tuning.training_args import PromptTuningArguments

TASKS = ("question_answering", "summarization", "translation")
# Methods that take `init`, and the methods that each other setting belongs to.
MULTITASK = "multitask_prompt_tuning"
INITIALIZED = ("prompt_tuning", "prefix_tuning", MULTITASK)
EFFECTIVE = {
    "init": INITIALIZED,
    "residual": ("prompt_tuning",),
    "encoder_reparameterization_type": ("p_tuning",),
    "init_demonstrations": ("prompt_tuning", "prefix_tuning"),
    "teacher_template": ("prompt_tuning", "p_tuning", "prefix_tuning", "cpt"),
    "prefix_projection": ("prefix_tuning",),
    "prefix_encoder": ("prefix_tuning",),
    "prefix_decoder": ("prefix_tuning",),
    "prefix_cross": ("prefix_tuning",),
    "encoder_hidden_size": ("prompt_tuning", "p_tuning", "prefix_tuning"),
    "lora_r": ("lora",),
    "lora_alpha": ("lora",),
    "lora_dropout": ("lora",),
    "lora_target_modules": ("lora",),
    "num_virtual_tokens": ("prompt_tuning", "p_tuning", "prefix_tuning", MULTITASK),
    "tasks": (MULTITASK,),
    "num_ranks": (MULTITASK,),
}
# What the recipes of `tasks` say, each for its own task; everything else is the multitask recipe's.
ENCODING = (
    "template", "metrics", "truncate", "max_source_tokens", "max_target_tokens", "drop_overlong", "score_choices",
    "choice_normalization", "num_demonstrations", "demonstration_selection",
)  # fmt: skip
GENERATION = ("generation_max_length", "generation_num_beams")
OF_TASKS = frozenset(field.name for field in dataclasses.fields(DataArguments)).union(ENCODING, GENERATION)
# Where it is not given; prompt_tuning's stands in PromptTuningArguments. recipes/README.md has the scores that chose
# them; of full fine-tuning no other was measured.
LEARNING_RATES = {"p_tuning": 3e-3, "prefix_tuning": 1e-2, "cpt": 3e-3, "lora": 1e-3, "full": 2e-5}
PROJECTED_RATE = 3e-4  # of a prefix that a network writes
LOCAL_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe: four blocks of typed settings, and the names of those that were given."""

    path: Path
    model: ModelArguments
    data: DataArguments
    prompt: PromptArguments
    training: PromptTuningArguments
    given: frozenset[str]

    @property
    def decoding(self) -> dict[str, int]:
        """How predictions are made, as `generate` takes it."""
        return {
            "max_new_tokens": self.training.generation_max_length or self.prompt.max_target_tokens,
            "num_beams": self.training.generation_num_beams or 1,
        }

    def resolved(self) -> dict[str, object]:
        """All that is needed to run the recipe again: our own settings, and the Trainer's that were given."""
        values: dict[str, object] = {}
        for block in (self.model, self.data, self.prompt):
            values |= {key: value for key, value in dataclasses.asdict(block).items() if value is not None}
        method = self.prompt.method
        elsewhere = OF_TASKS if method == MULTITASK else ()
        values = {
            key: value
            for key, value in values.items()
            if method in EFFECTIVE.get(key, (method,)) and key not in elsewhere
        }
        # A token is a secret, and a run that is made again is not to be pushed over the first one.
        secret = {name for name in self.given if name.startswith(("hub_", "push_to_hub"))}
        ours = self.training.to_dict() | {"output_dir": self.training.output_dir, "seed": self.training.seed}
        names = self.given | set(type(self.training).DEFAULTS) | {"output_dir", "seed"}
        return values | {key: ours[key] for key in sorted(names - secret) if ours.get(key) is not None}


def load_recipe(path: str | Path, overrides: list[str] | None = None, for_prediction: bool = False) -> Recipe:
    """Read a recipe and type it together with its overrides.

    Args:
        path: a flat YAML file.
        overrides: as on the command line, `["--learning_rate", "0.1", "--bf16"]`.
        for_prediction: the recipe of a finished run; its data need not be there.

    Raises:
        RecipeError: with every unknown key, wrong type and missing setting at once.
    """
    path = Path(path)
    pairs = read_pairs(path)
    parser = _parser()
    problems = [
        f"{path}, line {line}: {problem}" for key, value, line in pairs if (problem := parser.problem(key, value))
    ]
    overrides = overrides or []
    _, unknown = parser.parse_known_args_quietly(overrides, problems)
    problems += [f"command line: {parser.unknown(name)}" for name in unknown]
    if problems:
        raise RecipeError("\n".join(problems))

    argv = [f"--output_dir=runs/{path.stem}"]
    for key, value, _ in pairs:
        argv += to_argv(key, value)
    try:
        blocks = parser.parse_args_into_dataclasses(argv + overrides, look_for_args_file=False)
    except (ValueError, TypeError, ImportError) as error:  # raised by the dataclasses' own __post_init__
        raise RecipeError(f"{path}: {str(error).strip().splitlines()[0]}") from error
    flags = (item.lstrip("-").split("=")[0].replace("-", "_") for item in overrides if item.startswith("--"))
    given = frozenset(flags).union(key for key, _, _ in pairs)
    model, data, prompt, training = blocks
    if "learning_rate" not in given:
        training.learning_rate = default_learning_rate(prompt.method, prompt.prefix_projection, training.learning_rate)
    if data.streaming:
        if "train_sampling_strategy" not in given:
            training.train_sampling_strategy = "sequential"  # in the order of the stream, which is shuffled by itself
        # Else one process reads for all, and cannot send them batches of unlike length.
        training.accelerator_config.dispatch_batches = False
    if training.load_best_model_at_end and data.task and "metric_for_best_model" not in given:
        training.metric_for_best_model, training.greater_is_better = MAIN_METRIC[data.task], True
    recipe = Recipe(path, model, data, prompt, training, given)
    if not for_prediction and (problems := _contradictions(recipe)):
        raise RecipeError("\n".join(f"{path}: {problem}" for problem in problems))
    return recipe


def default_learning_rate(method: str, prefix_projection: bool, of_prompt: float) -> float:
    """The learning rate of a recipe that names none; `of_prompt` is that of PromptTuningArguments."""
    if method == "prefix_tuning" and prefix_projection:
        return PROJECTED_RATE
    return LEARNING_RATES.get(method, of_prompt)


def load_tasks(recipe: Recipe) -> dict[str, Recipe]:
    """The recipes of a multitask recipe's tasks, by the tasks' names; a task's id is its place here.

    Raises:
        RecipeError: with all that is wrong with any of them.
    """
    tasks: dict[str, Recipe] = {}
    problems = []
    for path in map(Path, recipe.prompt.tasks or ()):
        try:
            task = load_recipe(path, for_prediction=True)  # its method decides whether the rest is looked at
        except RecipeError as error:
            problems.append(str(error))
            continue
        if task.prompt.method == MULTITASK:
            problems.append(f"{path}: its method is {MULTITASK} too; name recipes that could each be trained alone")
        elif task.data.streaming:
            problems.append(f"{path}: rows of several tasks are not streamed; set streaming: false")
        elif path.stem in tasks:
            problems.append(
                f"{path}: task {path.stem} is {tasks[path.stem].path} already; rename one of the two files"
            )
        else:
            tasks[path.stem] = task
            problems += [f"{path}: {problem}" for problem in _contradictions(task)]
    if problems:
        raise RecipeError("\n".join(problems))
    return tasks


def print_all_flags() -> None:
    """Every flag with its type and default, the Trainer's too."""
    _parser().print_help()


def read_pairs(path: Path) -> list[tuple[str, str | list[str], int]]:
    """`(key, value, line)` of each pair. Scalars stay text: `no` is Norwegian here, and 5e-5 is typed by its flag."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe. Recipes are YAML files, as recipes/quickstart/qa.yaml") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; name a recipe in it") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        raise RecipeError(
            f"{path}: expected a flat list of `key: value` pairs, found {'nothing' if root is None else root.tag}"
        )
    pairs, seen = [], {}
    for key_node, value_node in root.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if key in seen:
            raise RecipeError(f"{path}, line {line}: {key} was set on line {seen[key]} already; keep one of the two")
        seen[key] = line
        if twice := _twice(value_node):
            raise RecipeError(f"{path}, line {line}: {twice} stands twice in {key}; keep one of the two")
        value = yaml.BaseLoader("").construct_object(value_node, deep=True)
        if value not in ("null", "~"):
            pairs.append((key, value, line))
    return pairs


def _twice(node: yaml.Node) -> str | None:
    """A key that stands twice in a mapping, at any depth."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    names = [key.value for key, _ in pairs]
    here = next((name for name in names if names.count(name) > 1), None)
    return here or next(filter(None, (_twice(value) for _, value in pairs)), None)


def to_argv(key: str, value: str | list | dict) -> list[str]:
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={json.dumps(value) if isinstance(value, dict) else value}"]


def _parser():
    from transformers import HfArgumentParser

    from prompt_tuning.training_args import PromptTuningArguments

    class RecipeParser(HfArgumentParser):
        """Reports a bad flag in place of leaving the process."""

        def error(self, message: str) -> NoReturn:
            raise RecipeError(message)

        def unknown(self, name: str) -> str:
            known = [option.removeprefix("--") for option in self._option_string_actions if "-" not in option[2:]]
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "`prompt-tuning train --help_all` lists them all"
            return f"unknown setting {name}; {hint}"

        def problem(self, key: str, value: str | list | dict) -> str | None:
            """What is wrong with one pair, if anything."""
            if f"--{key}" not in self._option_string_actions:
                return self.unknown(key)
            problems: list[str] = []
            self.parse_known_args_quietly(to_argv(key, value), problems)
            return problems[0].removeprefix("command line: ") if problems else None

        def parse_known_args_quietly(self, argv: list[str], problems: list[str]):
            try:
                namespace, rest = self.parse_known_args(argv)
            except RecipeError as error:
                problems.append(f"command line: {error}")
                return None, []
            return namespace, [item.lstrip("-").split("=")[0] for item in rest if item.startswith("-")] or rest

    blocks = (ModelArguments, DataArguments, PromptArguments, PromptTuningArguments)
    return RecipeParser(blocks, allow_abbrev=False, add_help=False)


def _contradictions(recipe: Recipe) -> list[str]:
    model, data, prompt, training = recipe.model, recipe.data, recipe.prompt, recipe.training
    problems = [] if model.model_name_or_path else ["model_name_or_path is missing"]
    problems += _task_contradictions(recipe) if prompt.method != MULTITASK else _multitask_contradictions(recipe)
    problems += _prompt_contradictions(recipe) + _precision_contradictions(recipe)
    positive = dict(
        num_virtual_tokens=prompt.num_virtual_tokens,
        init_demonstrations=prompt.init_demonstrations,
        lora_r=prompt.lora_r,
        num_ranks=prompt.num_ranks,
        encoder_hidden_size=prompt.encoder_hidden_size,
        max_source_tokens=prompt.max_source_tokens,
        max_teacher_tokens=prompt.max_teacher_tokens,
        max_target_tokens=prompt.max_target_tokens,
        max_train_samples=data.max_train_samples,
        buffer_size=data.buffer_size,
        max_eval_samples=data.max_eval_samples,
        max_predict_samples=data.max_predict_samples,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        per_device_eval_batch_tokens=training.per_device_eval_batch_tokens,
    )
    problems += [
        f"{name} is {value}; it must be at least 1"
        for name, value in positive.items()
        if value is not None and value < 1
    ]
    if prompt.early_stopping_patience is not None and not training.load_best_model_at_end:
        problems.append("early_stopping_patience needs load_best_model_at_end: true and an eval_strategy")
    for name in ("predict_with_generate", "remove_unused_columns"):
        if not getattr(training, name):
            problems.append(
                f"{name} is false; evaluation here is by generation, from rows with references: leave it out"
            )
    problems += _hub_contradictions(recipe) + _stream_contradictions(recipe)
    for name in ("do_train", "do_eval", "do_predict"):
        if name in recipe.given:
            problems.append(f"{name} has no effect here: `train` trains and then evaluates; leave it out")
    return problems


def _precision_contradictions(recipe: Recipe) -> list[str]:
    """What is wrong with the types that are computed in and that weights are kept in."""
    model, problems = recipe.model, []
    if recipe.training.fp16 and recipe.training.device.type == "cpu":
        problems.append("fp16 has no effect on a CPU: accelerate trains in float32; set bf16: true, or leave it out")
    ways = {"load_in_8bit": model.load_in_8bit, "load_in_4bit": model.load_in_4bit, "quant_type": model.quant_type}
    given = [name for name, value in ways.items() if value]
    if len(given) > 1:
        problems.append(f"{' and '.join(given)} exclude each other; leave all but one out")
    if given and recipe.prompt.method == "full":
        problems.append(f"{given[0]}: method full trains all weights, and quantized ones stay as they are; take lora")
    if not model.load_in_4bit:
        problems += [
            f"{name} is for 4 bits and has no effect without load_in_4bit: true"
            for name in ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "bnb_4bit_use_double_quant")
            if vars(model)[name] is not None
        ]
    return problems


def _hub_contradictions(recipe: Recipe) -> list[str]:
    training, base, method, problems = recipe.training, recipe.model.model_name_or_path, recipe.prompt.method, []
    if training.hub_token:
        problems.append("hub_token would stand in every checkpoint; log in with `hf auth login`, or set HF_TOKEN")
    if not training.push_to_hub:
        return problems
    if "hub_strategy" in recipe.given and training.hub_strategy != "end":
        problems.append(
            f"hub_strategy {training.hub_strategy.value} would upload unfinished runs or the optimiser's state; leave "
            "it out: the finished run is pushed"
        )
    if method == "none":
        problems.append("push_to_hub has nothing to push with method none; leave it out")
    elif method == MULTITASK:
        problems.append(
            "push_to_hub is for one run; each task's folder is one: `prompt-tuning push RUN/TASK` afterwards"
        )
    elif base and method != "full" and Path(base).is_dir():
        problems.append(
            f"push_to_hub: the adapter would name {base}, a folder that nobody else has; train without it, then "
            "`prompt-tuning push RUN --repo_id NAME --base_model USER/NAME`"
        )
    return problems


def _stream_contradictions(recipe: Recipe) -> list[str]:
    """What cannot be had of training rows that are read as they are needed."""
    data, prompt, training = recipe.data, recipe.prompt, recipe.training
    if not data.streaming:
        return []
    problems = []
    if training.max_steps <= 0:
        problems.append("streaming: a stream has no known length; set max_steps")
    wanted = {
        f"init {prompt.init}": prompt.init in ("frequent", "demonstrations") and prompt.method in INITIALIZED,
        f"num_demonstrations {prompt.num_demonstrations}": prompt.num_demonstrations > 0,
        f"teacher_template with loss {prompt.loss}": prompt.teacher_template is not None,
        f"train_sampling_strategy {training.train_sampling_strategy}": training.train_sampling_strategy
        != "sequential",
    }
    problems += [
        f"streaming: {name} needs all training rows before training; leave out one of the two"
        for name, asked in wanted.items()
        if asked
    ]
    for name, value in (
        ("preprocessing_num_workers", data.preprocessing_num_workers),
        ("dataloader_num_workers", training.dataloader_num_workers),
    ):
        if value:
            problems.append(
                f"streaming: {name} has no effect, since the training process reads the rows; leave it out"
            )
    return problems


def _task_contradictions(recipe: Recipe) -> list[str]:
    """What is wrong with the settings of a task and its data."""
    data, problems = recipe.data, []
    for name, value in (("task", data.task), ("template", recipe.prompt.template)):
        if value is None:
            problems.append(f"{name} is missing")
    files = [data.train_file, data.validation_file, data.test_file]
    if not data.dataset_name and not any(files):
        problems.append("no data: set dataset_name (a hub id), or train_file, validation_file and test_file")
    for file in filter(None, files):
        if Path(file).suffix not in LOCAL_FORMATS:
            problems.append(f"{file}: cannot tell its format; expected a name ending in {', '.join(LOCAL_FORMATS)}")
        elif not Path(file).is_file():
            problems.append(f"{file}: no such file (looked in {Path.cwd()})")
    count, selection = recipe.prompt.num_demonstrations, recipe.prompt.demonstration_selection
    if count < 0:
        problems.append(f"num_demonstrations is {count}; it must be at least 0")
    if count == 0 and selection != "random":
        problems.append(f"demonstration_selection is {selection} but num_demonstrations is 0; set it to at least 1")
    if count > 0 and not data.train_file and not data.dataset_name:
        problems.append(f"num_demonstrations is {count} but there are no training rows; set train_file")
    if data.task == "translation" and not (data.source_lang and data.target_lang):
        problems.append("translation needs source_lang and target_lang, as `source_lang: fr`")
    return problems


def _multitask_contradictions(recipe: Recipe) -> list[str]:
    """What is wrong with a recipe that trains on several tasks at once, and with theirs."""
    prompt, count = recipe.prompt, len(recipe.prompt.tasks or ())
    problems = [
        f"{name} is each task's own and has no effect with method {MULTITASK}; set it in the recipes of tasks"
        for name in sorted(recipe.given & OF_TASKS)
    ]
    if count < 2:
        problems.append(
            f"tasks names {count or 'no'} recipe{'' if count == 1 else 's'}; {MULTITASK} needs two or more, as "
            "`tasks: [qa.yaml, summaries.yaml]`"
        )
    if prompt.init in ("demonstrations", "template"):
        problems.append(
            f"init {prompt.init} is for one task: each has a template of its own; take vocab, frequent or text"
        )
    if prompt.adapter:
        problems.append(
            f"adapter goes on training the prompt of one task; to start from it set init: adapter and init_adapter: "
            f"{prompt.adapter}"
        )
    best = recipe.training.metric_for_best_model or "loss"
    if best.removeprefix("eval_") != "loss":
        problems.append(f"metric_for_best_model {best}: only the loss is taken over all tasks; leave it out")
    try:
        load_tasks(recipe)
    except RecipeError as error:
        problems += str(error).splitlines()
    return problems


def _prompt_contradictions(recipe: Recipe) -> list[str]:
    """Settings of the prompt that need each other, or would have no effect."""
    prompt, given, problems = recipe.prompt, recipe.given, []
    if prompt.method == "none":
        return []
    for init, name in (("text", "init_text"), ("class_labels", "init_labels"), ("adapter", "init_adapter")):
        value = dataclasses.asdict(prompt)[name]
        if prompt.init == init and not value and prompt.method in INITIALIZED:
            problems.append(f"init is {init} but {name} is missing; set it, or another init")
        if value and prompt.init != init and not (prompt.method == "cpt" and name == "init_text"):
            problems.append(f"{name} is set but init is {prompt.init}, so it would have no effect; set init: {init}")
    for name in ("adapter", "init_adapter"):
        folder = dataclasses.asdict(prompt)[name]
        on_hub = folder and is_hub_id(folder) and not Path(folder).is_dir()
        if folder and not on_hub and not Path(folder, "adapter_config.json").is_file():
            problems.append(
                f"{name} {folder}: no adapter_config.json there; name a folder that train wrote or a hub id"
            )
    for name, methods in EFFECTIVE.items():
        if name in given and prompt.method not in methods:
            problems.append(f"{name} has no effect with method {prompt.method}; it belongs to {' and '.join(methods)}")
    if prompt.method == "prefix_tuning" and prompt.prefix_projection and prompt.init not in ("random", "vocab"):
        problems.append("prefix_projection starts from its network's own noise; leave init out, or the projection")
    if prompt.method == "prefix_tuning" and prompt.init in ("frequent", "class_labels", "adapter"):
        problems.append(
            f"init {prompt.init} is for soft prompts; prefix_tuning takes random, text, demonstrations and template"
        )
    if prompt.init == "template" and prompt.num_demonstrations and prompt.demonstration_selection == "bm25":
        problems.append(
            "init template: bm25 shows each row demonstrations of its own, so the prompt could not start at them; set "
            "demonstration_selection: random or balanced"
        )
    if prompt.loss != "cross_entropy" and not prompt.teacher_template:
        problems.append(f"loss {prompt.loss} needs a teacher; set teacher_template to the prompt to be replaced")
    if prompt.teacher_template and prompt.loss == "cross_entropy":
        problems.append("teacher_template is set but loss is cross_entropy, so it would have no effect; set loss: kl")
    if prompt.loss != "cross_entropy" and recipe.training.label_smoothing_factor:
        problems.append(f"label_smoothing_factor has no effect with loss {prompt.loss}; leave it out")
    if prompt.method == "cpt" and not prompt.init_text:
        problems.append("cpt starts from a text; set init_text")
    return problems
