"""The types of the files of a run, by which they are checked when they are read.

Runs of older versions have fewer keys, and those of later versions may have more.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, TypedDict

from prompt_tuning.arguments.methods import METHODS
from prompt_tuning.support.json_types import Limits

Positive = Annotated[int, Limits(least=1)]
Seconds = Annotated[float, Limits(least=0)]
Share = Annotated[float, Limits(least=0)]
Split = Literal["train", "validation", "test"]
MethodName: TypeAlias = Literal[tuple(METHODS)]  # type: ignore[valid-type]  # the keys are literal in the table


class _SplitSize(TypedDict):
    rows: int
    cut_rows: int
    longest: int


class SplitSize(_SplitSize, total=False):
    """The counts of a split under `splits`."""

    dropped_rows: int
    dropped_targets: int
    cut_answers: int
    unreachable_targets: int
    long_references: int
    empty_rows: int
    rows_without_reference: int
    untrained_rows: int
    untrained_tokens: int


class Leakage(TypedDict):
    """The counts of a split under `leakage`; null if no training rows were read."""

    same_target: int | None
    other_target: int | None
    near: int | None
    shared_passages: int | None
    demonstrated: int | None
    initial_text: int | None


class Decoding(TypedDict, total=False):
    """How predictions were made: by choosing, or by writing with a number of beams and a limit of tokens."""

    choice_normalization: str
    choices: str
    num_beams: Positive
    max_new_tokens: Positive


class Writing(TypedDict):
    """What `decoding` has if predictions were written and not chosen."""

    num_beams: Positive
    max_new_tokens: Positive


class Api(TypedDict, total=False):
    """What was asked of an API, what it cost, and what the server says of itself."""

    base_url: str
    requests: int
    from_cache: int
    input_tokens: int
    output_tokens: int
    without_usage: int
    token_prices: list[float]
    cost: float
    paid: float
    models: dict[str, int]
    system_fingerprints: dict[str, int]


class Answers(TypedDict):
    """The answers of closed questions."""

    expected: dict[str, int]
    taken: dict[str, dict[str, int]]
    always: dict[str, str | float]


class Bin(TypedDict):
    """The rows whose taken choice has a probability in one range."""

    rows: Positive
    confidence: Share
    accuracy: Share


class _Probabilities(TypedDict):
    accuracy: float
    brier: float
    ece: Share
    bins: list[Bin]


class Probabilities(_Probabilities, total=False):
    """The scores of the probabilities of choices; the last two if all rows have the same choices."""

    macro_f1: float
    auc: Share


class Stage(TypedDict):
    """The numbers of one adapter and of the ensemble."""

    one_adapter: Seconds
    ensemble: Seconds


class Cost(TypedDict):
    """What an ensemble costs."""

    rows: Stage
    virtual_tokens: Stage
    seconds: Stage


class Example(TypedDict):
    """A row with its predictions, as cards show it."""

    source: str
    references: list[str]
    cut_tokens: int


class _Prediction(Example):
    row: int
    source_tokens: int


class Prediction(_Prediction, total=False):
    """A row of predictions/<split>.jsonl; it also has a text for each system.

    `columns` has the row's own texts, and `scores` the scores of the row alone by system and metric. Rows of older
    versions have neither.
    """

    columns: dict[str, str]
    scores: dict[str, dict[str, float]]


class _Difference(TypedDict):
    difference: float
    low: float
    high: float


class Difference(_Difference, total=False):
    """How what was trained differs from the hard prompt by a metric, with the ends of the 95 % interval."""

    p: float


class _Common(TypedDict):
    seed: int


class Common(_Common, total=False):
    """The facts of results.json about a training, of one task or several."""

    method: MethodName
    train_rows: int
    train_seconds: Seconds
    train_steps: int
    seconds_per_step: Seconds
    added_memory_bytes: Annotated[int, Limits(least=0)]
    trainable_parameters: int
    total_parameters: Positive
    virtual_tokens: Positive
    text_tokens: Positive
    layer_vectors: bool
    best_checkpoint: Annotated[str, Limits(pattern=r"checkpoint-\d{1,15}")]
    best_metric: Annotated[dict[str, float], Limits(least=1)]
    resumed_from: str
    changed_settings: dict[str, dict[str, Annotated[list[Any], Limits(least=2)]]]
    stream: dict[str, Any]


class _Results(Common):
    task: Literal["question_answering", "summarization", "translation"]
    split: Split
    rows: Positive
    cut_rows: int
    model: str
    template: str
    decoding: Decoding
    leakage: dict[str, Leakage]
    versions: dict[str, str]


class Results(_Results, total=False):
    """The facts of results.json about the rows of one task."""

    splits: dict[str, SplitSize]
    example: dict[str, Any]
    example_row: int
    own_example: Example
    comparison: dict[str, Difference]
    hardware: str
    processes: Positive
    base_model: str
    dataset_commit: str
    inputs: dict[str, str]
    trained_with: list[str]
    recipe: dict[str, Any]
    adapter: str
    adapters: dict[str, dict[str, str | float]]
    combine: str
    answers: Answers
    api: Api
    probabilities: dict[str, Probabilities]
    prediction_counts: dict[str, dict[str, int]]
    prediction_seconds: dict[str, Seconds]
    evaluation_seconds: Seconds
    all_agree: Seconds
    mean_votes: Seconds
    cost: Cost


class TaskResults(Common):
    """The results.json of several tasks."""

    tasks: Annotated[dict[str, Results], Limits(least=1)]


class TrainingFacts(TypedDict):
    """What results.json has if something was trained."""

    train_steps: int
    train_seconds: Seconds
    trainable_parameters: int
    total_parameters: Positive
    evaluation_seconds: Seconds


class EvaluationFacts(TypedDict):
    """What results.json has of every evaluation since version 0.1.0."""

    evaluation_seconds: Seconds
    prediction_seconds: dict[str, Seconds]


class CardVersions(TypedDict):
    """The versions that a card names."""

    prompt_tuning: str
    peft: str


class CardResults(TypedDict):
    """What else a card needs of results.json."""

    method: str
    example: dict[str, Any]
    hardware: str
    splits: dict[str, SplitSize]
    versions: CardVersions


class Settings(TypedDict, total=False):
    """The settings of a recipe that reports read; the others have any value."""

    lang: str | None
    source_lang: str | None
    target_lang: str | None
    license: str | None
    metrics: list[str] | None
    init: str
    init_text: str | None
    init_labels: list[str] | None
    init_adapter: str | None
    adapter: str | None
    init_demonstrations: int | None
    demonstration_selection: str
    loss: str
    method: MethodName
    output_dir: str
    prefix_projection: bool
    dataset_name: str | None
    dataset_config_name: str | None
    train_file: str | None
    validation_file: str | None
    test_file: str | None
    train_split: str
    validation_split: str
    test_split: str


class CardSettings(TypedDict):
    """The settings that a card needs of recipe.yaml."""

    demonstration_selection: str
    train_split: str
    validation_split: str
    test_split: str


class LogEntry(TypedDict):
    """An entry of log_history.json; it also has numbers, which may be NaN."""

    step: int


class _CardFacts(TypedDict):
    name: str
    results: dict[str, Any]
    settings: Settings


class CardFacts(_CardFacts, total=False):
    """The facts of a card as JSON."""

    folder: str
    template: dict[str, Any]
    log_history: list[Any]
    loader: str
    exported: bool
    example: Example
    own_example: bool


class EnsembleAdapter(TypedDict):
    """An adapter of an ensemble; it also has scores."""

    folder: str
    virtual_tokens: int


class ConstantAnswer(TypedDict):
    """The most frequent answer of closed questions; it also has scores."""

    answer: str
