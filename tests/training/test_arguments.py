"""Call PromptTuningTrainer as Seq2SeqTrainer is called: each argument has its effect there, or is refused at once."""

import copy
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from helpers.models import forbid_model_loading, tiny_llama
from helpers.rows import question_rows
from helpers.trainers import encoded, prompt_of, soft, trainer
from peft import LoraConfig, get_peft_model
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations.deepspeed import (
    HfTrainerDeepSpeedConfig,
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
)

from prompt_tuning import PromptTuningArguments, PromptTuningTrainer, add_soft_prompt, load_metrics, prompt_config
from prompt_tuning.arguments import PromptArguments
from prompt_tuning.cli.main import main
from prompt_tuning.errors import DataError, RecipeError


def lora(tokenizer):
    config = LoraConfig(target_modules="all-linear", r=2, task_type="CAUSAL_LM")
    return get_peft_model(tiny_llama(len(tokenizer)), config)


def prefix(tokenizer):
    base = tiny_llama(len(tokenizer))
    torch.manual_seed(2)
    return add_soft_prompt(base, prompt_config(base, 6, PromptArguments(method="prefix_tuning")))


MODELS = {
    "llama": lambda tokenizer: soft("llama", tokenizer),
    "t5": lambda tokenizer: soft("t5", tokenizer),
    "bart": lambda tokenizer: soft("bart", tokenizer),
    "prefix": prefix,
    "lora": lora,
}


def build(model, tokenizer, folder, **arguments):
    """Return a PromptTuningTrainer whose constructor's arguments and settings may be any."""
    is_encoder_decoder = model is not None and model.config.is_encoder_decoder
    settings = dict(
        use_cpu=True, disable_tqdm=True, report_to="none", max_steps=2, per_device_train_batch_size=4, logging_steps=1
    )
    settings |= arguments.pop("settings", {})
    defaults = dict(
        args=PromptTuningArguments(output_dir=str(folder), **settings),
        processing_class=tokenizer,
        train_dataset=encoded(tokenizer, question_rows(24), is_encoder_decoder),
        eval_dataset=encoded(tokenizer, question_rows(7, 3), is_encoder_decoder),
        generation_kwargs={"max_new_tokens": 6},
    )
    return PromptTuningTrainer(model=model, **(defaults | arguments))


def cross_entropy(shift, shapes, smoothing=0.0):
    """Return a loss function as transformers documents it, which records the shapes that it gets."""

    def loss(outputs, labels, num_items_in_batch=None):
        shapes.append((outputs.logits.shape, labels.shape, num_items_in_batch))
        logits, targets = (outputs.logits[:, :-1], labels[:, 1:]) if shift else (outputs.logits, labels)
        total = F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), reduction="sum", label_smoothing=smoothing
        )
        return total / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)

    return loss


@pytest.mark.parametrize(("name", "side"), [*((name, "right") for name in MODELS), ("llama", "left")])
def test_a_loss_function_gets_logits_for_every_label_and_makes_the_step_of_the_models_own_loss(
    name, side, tokenizer, tmp_path
):
    collator = DataCollatorForSeq2Seq(copy.deepcopy(tokenizer))
    collator.tokenizer.padding_side = side
    trained, evaluated, shapes = [], [], []
    for loss in (None, cross_entropy(name not in ("t5", "bart"), shapes)):
        torch.manual_seed(4)
        model = MODELS[name](tokenizer)
        # A gradient's own size shows a loss that is scaled wrongly; Adam would hide it.
        settings = dict(optim="sgd", learning_rate=0.5, gradient_accumulation_steps=2, max_grad_norm=0.0)
        run = build(model, tokenizer, tmp_path, compute_loss_func=loss, data_collator=collator, settings=settings)
        run.train()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
        evaluated.append(run.evaluate()["eval_loss"])
    assert all(logits[:2] == labels for logits, labels, _ in shapes) and shapes[0][2] is not None
    assert torch.allclose(*trained, atol=1e-5, rtol=1e-4)
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-4)


def test_a_loss_function_beside_a_teacher_is_refused(tokenizer, tmp_path):
    with pytest.raises(RecipeError, match="compute_loss_func: the loss is the divergence from the teacher"):
        build(soft("llama", tokenizer), tokenizer, tmp_path, compute_loss_func=cross_entropy(True, []), teacher={})


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_metrics_in_trainers_own_form_get_ids_labels_and_inputs_in_the_order_of_the_rows(
    architecture, tokenizer, tmp_path
):
    passed = []

    def exact_match(eval_prediction):
        passed.append(eval_prediction)
        both = (eval_prediction.predictions, eval_prediction.label_ids)
        texts = [np.where(ids != -100, ids, tokenizer.pad_token_id) for ids in both]
        predictions, labels = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in texts)
        return {"exact": float(np.mean([a.strip() == b.strip() for a, b in zip(predictions, labels, strict=True)]))}

    model = soft(architecture, tokenizer)
    run = build(model, tokenizer, tmp_path, compute_metrics=exact_match, settings={"include_for_metrics": ["inputs"]})
    assert "eval_exact" in run.evaluate()
    rows = run.eval_dataset
    for number, row in enumerate(rows):
        labels = passed[0].label_ids[number]
        assert labels[labels != -100].tolist() == [label for label in row["labels"] if label != -100]
        assert passed[0].inputs[number][: len(row["input_ids"])].tolist() == row["input_ids"]
    predictions = run.predict(rows).predictions
    assert np.array_equal(passed[0].predictions, predictions) and np.array_equal(passed[1].predictions, predictions)


def test_metrics_in_trainers_own_form_choose_the_best_checkpoint(tokenizer, tmp_path):
    best = dict(
        eval_strategy="steps", eval_steps=1, save_strategy="best", load_best_model_at_end=True, max_steps=3,
        metric_for_best_model="low", greater_is_better=False, save_only_model=True,
    )  # fmt: skip
    scores = iter([3.0, 1.0, 2.0])
    run = build(
        soft("llama", tokenizer), tokenizer, tmp_path, compute_metrics=lambda prediction: {"low": next(scores)},
        settings=best,
    )  # fmt: skip
    prompts = []

    class Prompts(TrainerCallback):
        def on_step_end(self, *args, model, **kwargs):
            prompts.append(prompt_of(model))

    run.add_callback(Prompts())
    run.train()
    assert run.state.best_global_step == 2 and torch.equal(prompt_of(run.model), prompts[1])


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_rows_without_labels_get_the_predictions_of_rows_with_labels(architecture, tokenizer, tmp_path):
    run = trainer(soft(architecture, tokenizer), tokenizer, tmp_path)
    rows = run.eval_dataset
    labelled = run.predict(rows)
    if architecture == "llama":
        sources = [
            [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100] for row in rows
        ]
    else:
        sources = rows["input_ids"]
    unlabelled = Dataset.from_dict({"input_ids": sources, "attention_mask": [[1] * len(ids) for ids in sources]})
    output = run.predict(unlabelled)
    assert np.array_equal(output.predictions, labelled.predictions)
    assert output.label_ids is None and "test_f1" in labelled.metrics and "test_f1" not in output.metrics
    assert "eval_loss" not in run.evaluate(unlabelled)
    with_references = unlabelled.add_column("references", rows["references"])
    assert run.predict(with_references).metrics["test_f1"] == labelled.metrics["test_f1"]
    assert run.predict_texts(unlabelled) == run.predict_texts(rows)


def own_form(eval_prediction, compute_result=True):
    return {}


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"batch_eval_metrics": True}, {"compute_metrics": own_form}, "batch_eval_metrics: metrics are computed over"),
        ({"eval_do_concat_batches": False}, {}, "eval_do_concat_batches false: predictions are given in the order"),
        (
            {"include_for_metrics": ["loss"]},
            {"compute_metrics": own_form},
            "include_for_metrics loss: Trainer repeats",
        ),
        ({"include_for_metrics": ["inputs"]}, {"compute_metrics": load_metrics(["squad"])}, "gets no inputs"),
        ({"label_names": ["targets"]}, {}, r"label_names \['targets'\]: targets are read from the column labels"),
        ({"neftune_noise_alpha": 5.0}, {}, "neftune_noise_alpha: noise on embeddings is for fine-tuning"),
        ({}, {"preprocess_logits_for_metrics": lambda logits, labels: logits}, "evaluations keep no logits"),
        ({}, {"args": TrainingArguments("unused", use_cpu=True)}, "args: TrainingArguments has no predict_with_gener"),
        ({}, {"args": None}, "args: NoneType has no predict_with_generate"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_an_argument_without_an_effect_is_refused_at_once(settings, arguments, message, tokenizer, tmp_path):
    with pytest.raises(RecipeError, match=message):
        build(soft("llama", tokenizer), tokenizer, tmp_path, settings=settings, **arguments)


@pytest.mark.parametrize("arguments", [PromptTuningArguments, Seq2SeqTrainingArguments])
def test_a_process_that_sees_several_gpus_uses_one_and_says_so(arguments, tokenizer, tmp_path, caplog):
    settings = dict(per_device_train_batch_size=4, num_train_epochs=1, report_to="none", disable_tqdm=True)
    args = arguments(str(tmp_path), use_cpu=True, predict_with_generate=True, **settings)
    args._n_gpu = 2  # As on a machine with two GPUs.
    run = build(soft("llama", tokenizer), tokenizer, tmp_path, args=args)
    run.train()
    assert run.state.global_step == 6  # 24 rows are read 4 at a time.
    assert "eval_loss" in run.evaluate() and run.model_wrapped is run.model
    assert "2 GPUs are visible, and this process uses one of them" in caplog.text and "ddp.yaml" in caplog.text


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FSDP_VERSION": "1"}, "FSDP: version 1 does not run here. Set fsdp_version: 2"),
        (
            {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "fsdp_offload_params: the weights would lie on the CPU",
        ),
    ],
)
def test_what_fsdp_cannot_split_here_is_refused_in_a_recipe_and_by_the_trainer(
    variables, message, tokenizer, recipe_file, tmp_path, monkeypatch, capsys
):
    forbid_model_loading(monkeypatch)
    for name, value in (variables | {"ACCELERATE_USE_FSDP": "true"}).items():
        monkeypatch.setenv(name, value)
    assert main(["train", str(recipe_file())]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(RecipeError, match=message):
        build(soft("llama", tokenizer), tokenizer, tmp_path)


def test_offloading_by_the_arguments_is_refused_too(tokenizer, tmp_path):
    settings = {"fsdp": True, "fsdp_config": {"version": 2, "cpu_offload": True}}
    with pytest.raises(RecipeError, match="fsdp_offload_params: the weights would lie on the CPU"):
        build(soft("llama", tokenizer), tokenizer, tmp_path, settings=settings)


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        (2, {"fp16": True}, "fp16: DeepSpeed would round the trained weights"),
        (2, {"optim": "adafactor"}, "optim adafactor: DeepSpeed gives an optimiser parts of the weights"),
        (0, {}, "DeepSpeed: ZeRO stage 0 splits nothing"),
        (2, {"sections": {"optimizer": {"type": "Adam"}}}, "optimizer of DeepSpeed's configuration: it would replace"),
        (3, {"sections": {"scheduler": {}}}, "Remove it, and set lr_scheduler_type"),
    ],
)
def test_a_trainer_refuses_what_deepspeed_would_train_otherwise(stage, settings, message, tokenizer, tmp_path):
    args = PromptTuningArguments(str(tmp_path), use_cpu=True, optim=settings.get("optim", "adamw_torch"))
    args.deepspeed_plugin = SimpleNamespace(zero_stage=stage, deepspeed_config=settings.get("sections", {}))
    args.fp16 = "fp16" in settings
    with pytest.raises(RecipeError, match=message):
        build(soft("llama", tokenizer), tokenizer, tmp_path, args=args)


def test_a_model_is_read_whole_before_deepspeed_splits_it(tokenizer, tmp_path):
    zero3 = HfTrainerDeepSpeedConfig.__new__(HfTrainerDeepSpeedConfig)  # Its __init__ needs deepspeed.
    zero3._stage = 3
    set_hf_deepspeed_config(zero3)
    args = PromptTuningArguments(str(tmp_path), use_cpu=True)
    assert not is_deepspeed_zero3_enabled()
    model = soft("llama", tokenizer)
    set_hf_deepspeed_config(zero3)
    build(model, tokenizer, tmp_path, args=args)
    assert not is_deepspeed_zero3_enabled()


def test_a_further_trainer_of_a_run_does_not_pass_deepspeed_on_again(tokenizer, tmp_path):
    run = build(soft("llama", tokenizer), tokenizer, tmp_path)
    run.args.deepspeed_plugin = SimpleNamespace(zero_stage=2, deepspeed_config={})  # accelerate would refuse it.
    further = PromptTuningTrainer(model=run.model, args=run.args, processing_class=tokenizer)
    assert "eval_loss" in further.evaluate(run.eval_dataset)


def test_a_model_that_deepspeed_did_not_train_is_evaluated_under_the_autocast_of_training(tokenizer, tmp_path):
    run = build(soft("llama", tokenizer), tokenizer, tmp_path, settings={"bf16": True})
    expected = run.evaluate()["eval_loss"]
    run = build(soft("llama", tokenizer), tokenizer, tmp_path, settings={"bf16": True})
    run.is_deepspeed_enabled = True
    assert run.evaluate()["eval_loss"] == expected
    assert run.is_deepspeed_enabled


def test_a_stream_of_evaluation_rows_is_refused_at_once(tokenizer, tmp_path):
    rows = encoded(tokenizer, question_rows(7))
    for evaluated in (rows.to_iterable_dataset(), {"a": rows, "b": rows.to_iterable_dataset()}):
        with pytest.raises(DataError, match="a IterableDataset has no length"):
            build(soft("llama", tokenizer), tokenizer, tmp_path, eval_dataset=evaluated)


def test_predictions_are_refused_where_only_losses_are_kept(tokenizer, tmp_path):
    run = build(soft("llama", tokenizer), tokenizer, tmp_path, settings={"prediction_loss_only": True})
    assert "eval_loss" in run.evaluate()
    with pytest.raises(RecipeError, match="prediction_loss_only is True, so that nothing is written"):
        run.predict(run.eval_dataset)


def test_noise_on_embeddings_is_added_without_a_prompt(tokenizer, tmp_path):
    losses = []
    for alpha in (None, 5.0):
        torch.manual_seed(4)
        run = build(lora(tokenizer), tokenizer, tmp_path, settings={"neftune_noise_alpha": alpha})
        run.train()
        losses.append(run.state.log_history[0]["loss"])
        assert not run.model.get_base_model().get_input_embeddings()._forward_hooks
    assert losses[0] != losses[1]


def test_a_model_init_makes_the_model_of_each_training(tokenizer, tmp_path):
    trained = soft("llama", tokenizer)
    build(trained, tokenizer, tmp_path / "model").train()
    made = []

    def model_init():
        made.append(soft("llama", tokenizer))
        return made[-1]

    run = build(None, tokenizer, tmp_path / "init", model_init=model_init, compute_metrics=load_metrics(["squad"]))
    for _ in range(2):
        run.train()
        assert torch.equal(prompt_of(run.model), prompt_of(trained))
    assert len(made) == 3 and run.model is made[-1]
    assert (
        made[-1].get_base_model().generation_config.eos_token_id
        == trained.get_base_model().generation_config.eos_token_id
    )
    assert "eval_f1" in run.evaluate()


@pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed: pip install optuna")
@pytest.mark.filterwarnings("default")
def test_a_search_trains_a_prompt_for_each_trial(tokenizer, tmp_path):
    lengths = []

    def model_init(trial):
        length = 4 if trial is None else trial.suggest_int("num_virtual_tokens", 2, 9)
        lengths.append(length)
        base = tiny_llama(len(tokenizer))
        return add_soft_prompt(base, prompt_config(base, length))

    run = build(
        None, tokenizer, tmp_path, model_init=model_init, compute_metrics=load_metrics(["squad"]),
        settings=dict(eval_strategy="steps", eval_steps=2, save_strategy="no"),
    )  # fmt: skip
    best = run.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=2,
        backend="optuna",
    )
    assert set(best.hyperparameters) == {"learning_rate", "num_virtual_tokens"} and len(lengths) == 3


class Fixed(TrainerCallback):
    """A callback as other people write them."""

    def __init__(self):
        self.logs = []
        self.metrics = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(logs)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.metrics.append(metrics)


def test_callbacks_optimizers_and_several_evaluation_sets_of_other_people_work(tokenizer, tmp_path):
    model = soft("llama", tokenizer)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    callback = Fixed()
    rows = encoded(tokenizer, question_rows(7, 3)).add_column("note", ["extra"] * 7)
    run = build(
        model, tokenizer, tmp_path, optimizers=(optimizer, schedule), callbacks=[callback],
        eval_dataset={"a": rows, "b": rows},
        compute_metrics=load_metrics(["squad"]), settings=dict(eval_strategy="epoch", metric_for_best_model="a_f1"),
    )  # fmt: skip
    run.train()
    assert [logs["learning_rate"] for logs in callback.logs if "learning_rate" in logs] == [0.5, 0.25]
    assert [next(name for name in metrics if name.endswith("f1")) for metrics in callback.metrics] == [
        "eval_a_f1",
        "eval_b_f1",
    ]


def test_iterable_rows_train(tokenizer, tmp_path):
    rows = encoded(tokenizer, question_rows(24))
    stream = IterableDataset.from_generator(lambda: iter(rows))
    run = build(soft("llama", tokenizer), tokenizer, tmp_path, train_dataset=stream)
    assert run.train().global_step == 2


@pytest.mark.parametrize("name", ["llama", "t5", "lora"])
def test_label_smoothing_takes_the_step_of_a_smoothed_cross_entropy(name, tokenizer, tmp_path):
    trained = []
    descent = dict(optim="sgd", learning_rate=0.5, max_grad_norm=0.0)
    for loss, factor in ((cross_entropy(name != "t5", [], 0.1), 0.0), (None, 0.1), (None, 0.0)):
        torch.manual_seed(4)
        model = MODELS[name](tokenizer)
        build(
            model, tokenizer, tmp_path, compute_loss_func=loss, settings=descent | {"label_smoothing_factor": factor}
        ).train()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.allclose(trained[0], trained[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(trained[1], trained[2], atol=1e-5, rtol=1e-4)
