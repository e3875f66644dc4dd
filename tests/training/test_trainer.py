"""Check what the trainer feeds the model, how it scores, and that a stop and a resumption change nothing."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.models import tiny_llama
from helpers.rows import question_rows
from helpers.trainers import BUILDERS, LARGE_BATCH, SMALL_BATCHES, encoded, one_step, prompt_of, soft, trainer
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import (
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from prompt_tuning import (
    PromptTuningArguments,
    PromptTuningTrainer,
    load_metrics,
    prompt_config,
)
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.encoding.batching import source_length
from prompt_tuning.encoding.decoding import decode
from prompt_tuning.engine.row_tree import find_shared_texts
from prompt_tuning.engine.shared_prefix import SharedPrefixModel
from prompt_tuning.errors import AdapterError, DataError, RecipeError


@pytest.mark.parametrize("architecture", BUILDERS)
def test_loss_falls_generation_scores_and_plain_peft_loads_the_adapter(architecture, tokenizer, tmp_path):
    model = soft(architecture, tokenizer)
    run = trainer(model, tokenizer, tmp_path, max_steps=30, learning_rate=0.3)
    before = run.evaluate()["eval_loss"]
    run.train()
    after = run.evaluate()
    assert after["eval_loss"] < before
    assert 0 <= after["eval_f1"] <= 100
    grown = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert grown == ["prompt_encoder.default.embedding.weight"]

    model.save_pretrained(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(BUILDERS[architecture](len(tokenizer)), tmp_path / "adapter")
    assert torch.equal(prompt_of(plain), prompt_of(model))
    row = run.eval_dataset[0]
    batch = run.data_collator([{"input_ids": row["input_ids"], "labels": row["labels"]}])
    theirs = plain(**{name: torch.as_tensor(value) for name, value in batch.items()}).loss
    assert theirs.item() == pytest.approx(run.evaluate(Dataset.from_list([row]))["eval_loss"], abs=1e-5)


def test_every_row_of_an_encoder_decoder_prompt_gets_a_gradient(tokenizer, tmp_path):
    model = soft("t5", tokenizer)
    assert prompt_of(model).shape == (6, 32)  # Plain PEFT allocates 12 rows.
    run = trainer(model, tokenizer, tmp_path)
    batch = next(iter(run.get_train_dataloader()))
    run.compute_loss(model, batch).backward()
    assert (model.prompt_encoder["default"].embedding.weight.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("tuned", ["soft", "nothing"])
@pytest.mark.parametrize("architecture", BUILDERS)
def test_labels_change_no_prediction(architecture, tuned, tokenizer, tmp_path):
    seen = []
    many = architecture != "llama"
    model = soft(architecture, tokenizer) if tuned == "soft" else BUILDERS[architecture](len(tokenizer))
    run = trainer(model, tokenizer, tmp_path, score=lambda texts, _: seen.append(sorted(texts)) or {"f1": 0.0})
    rows = question_rows(7, 3)
    other = [row | {"answers": {"text": ["Dakar and Riga"], "answer_start": [0]}} for row in rows]
    one, two = (encoded(tokenizer, version, many) for version in (rows, other))
    assert run.predict_texts(one) == run.predict_texts(two)
    run.evaluate(one)
    run.evaluate(two)
    assert seen[0] == seen[1]


def test_predictions_have_the_order_of_the_data_and_do_not_depend_on_the_batch(tokenizer, tmp_path):
    model = soft("llama", tokenizer)
    rows = encoded(tokenizer, question_rows(11, 3))
    together = trainer(model, tokenizer, tmp_path, per_device_eval_batch_size=5).predict_texts(rows)
    alone = trainer(model, tokenizer, tmp_path, per_device_eval_batch_size=1)
    assert together == [alone.predict_texts(rows.select([number]))[0] for number in range(len(rows))]
    assert len(set(together)) > 1


@pytest.mark.parametrize("architecture", BUILDERS)
def test_an_evaluation_is_the_same_with_batches_of_any_size(architecture, tokenizer, tmp_path):
    model = soft(architecture, tokenizer)
    runs = [trainer(model, tokenizer, tmp_path, evaluation=11, per_device_eval_batch_tokens=n) for n in (1, 400, 9999)]
    scores = [run.evaluate() for run in runs]
    for other in scores[1:]:
        assert other["eval_loss"] == pytest.approx(scores[0]["eval_loss"], abs=1e-5)
        assert other["eval_f1"] == scores[0]["eval_f1"]
    # Trainer's own loss is the mean of the batches' means, so rows of different lengths tell them apart.
    one_by_one = [runs[0].evaluate(runs[0].eval_dataset.select([number])) for number in range(11)]
    targets = [sum(label != -100 for label in labels) for labels in runs[0].eval_dataset["labels"]]
    total = sum(score["eval_loss"] * count for score, count in zip(one_by_one, targets, strict=True))
    assert scores[0]["eval_loss"] == pytest.approx(total / sum(targets), abs=1e-5)
    sizes = [[len(batch["input_ids"]) for batch in run.get_eval_dataloader()] for run in runs]
    assert sizes[0] == [1] * 11 and sizes[2] == [11] and 1 < max(sizes[1]) < 11


def test_an_evaluation_computes_its_prompt_once(tokenizer, tmp_path, monkeypatch):
    model = soft("llama", tokenizer)
    run = trainer(model, tokenizer, tmp_path, per_device_eval_batch_size=2)
    run.eval_dataset = encoded(tokenizer, [row | {"context": "Read. " + row["context"]} for row in question_rows(7)])
    expected = [run.predict_texts(run.eval_dataset.select([number]))[0] for number in range(7)]
    computed = []
    get_prompt = model.get_prompt
    monkeypatch.setattr(model, "get_prompt", lambda **kwargs: computed.append(1) or get_prompt(**kwargs))
    assert run.predict_texts(run.eval_dataset) == expected
    assert len(run.get_eval_dataloader()) == 4 and len(computed) == 1
    # The common prefix is in that cache too.
    assert tokenizer.decode(run._evaluated.common_prefix).startswith("Read.")
    model.prompt_encoder["default"].embedding.weight.data.add_(1.0)
    assert run.predict_texts(run.eval_dataset) != expected


@pytest.mark.parametrize("window", [None, 60])
@pytest.mark.parametrize("tuned", ["nothing", "lora"])
def test_without_a_prompt_a_batch_predicts_the_texts_of_single_rows_and_reads_a_common_prefix_once(
    tuned, window, tokenizer, tmp_path
):
    if window:
        torch.manual_seed(0)
        config = tiny_llama(len(tokenizer)).config.to_dict() | {"sliding_window": window}
        model = MistralForCausalLM(MistralConfig.from_dict(config)).eval()
    else:
        model = tiny_llama(len(tokenizer))
    plain = copy.deepcopy(model)
    if tuned == "lora":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        plain = model
    run = trainer(model, tokenizer, tmp_path)
    rows = encoded(tokenizer, [row | {"context": "Read. " + row["context"]} for row in question_rows(11)])
    base = model.get_base_model() if tuned == "lora" else model
    alone = []
    for row in rows:
        ids = torch.tensor([row["input_ids"][: source_length(row["labels"])]])
        new = plain.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        alone += decode(new[:, ids.shape[1] :].tolist(), tokenizer, ("\n",))
    read = []
    graphs = []

    def note(module, args, output):
        read.append(args[0].shape)
        graphs.append(output.requires_grad)

    base.get_input_embeddings().register_forward_hook(note)
    assert run.predict_texts(rows) == alone and len(set(alone)) > 1
    assert not any(graphs)  # Graphs would keep the activations of all rows in memory.
    if not window:  # Rows that would pass a window in a padded batch take another path.
        prefix = run._evaluated.common_prefix
        rests = [row["input_ids"][len(prefix) : source_length(row["labels"]) - 1] for row in rows]
        saved = find_shared_texts(rests, [0] * len(rests), 1).num_saved
        assert sum(shape.numel() for shape in read if shape[0] == 1) == len(prefix) + sum(map(len, rests)) - saved
    assert run.predict_texts(rows.select([3])) == alone[3:4]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo causes this warning.
def test_torch_compile_compiles_layers_and_trains_to_the_same_prompt(tokenizer, tmp_path):
    prompts = []
    for settings in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        model = soft("llama", tokenizer)
        run = trainer(model, tokenizer, tmp_path, **settings)
        run.train()
        assert run.model_wrapped is model
        prompts.append(prompt_of(model))
        graphs = counters["stats"]["unique_graphs"]
        hard = trainer(model.get_base_model(), tokenizer, tmp_path, **settings)
        hard.predict_texts(run.eval_dataset)  # The compiled layers take its other shapes without another graph.
        assert counters["stats"]["unique_graphs"] == graphs
    assert (prompts[0] - prompts[1]).abs().max() < 1e-4


def test_each_row_is_scored_against_its_own_references(tokenizer, tmp_path):
    seen = {}

    def score(predictions, references):
        seen.update(predictions=predictions, references=references)
        return {"f1": 1.0, "signature": "text stays out of Trainer's logs"}

    run = trainer(
        soft("llama", tokenizer), tokenizer, tmp_path, score=score, train_sampling_strategy="group_by_length"
    )
    metrics = run.evaluate()
    assert metrics["eval_f1"] == 1.0 and "eval_signature" not in metrics
    by_references = sorted(map(str, run.eval_dataset["references"]))
    assert sorted(map(str, seen["references"])) == by_references
    expected = dict(zip(map(str, run.eval_dataset["source"]), run.predict_texts(run.eval_dataset), strict=True))
    order = np.argsort([-len(ids) for ids in run.eval_dataset["input_ids"]], kind="stable")
    assert seen["predictions"] == [expected[run.eval_dataset[int(number)]["source"]] for number in order]


@pytest.mark.parametrize("architecture", BUILDERS)
def test_a_stopped_and_resumed_run_ends_with_the_prompt_of_an_uninterrupted_one(architecture, tokenizer, tmp_path):
    whole = soft(architecture, tokenizer)
    trainer(whole, tokenizer, tmp_path / "whole", save_steps=3, max_steps=6).train()

    stopped = soft(architecture, tokenizer)
    run = trainer(stopped, tokenizer, tmp_path / "parts", save_steps=3, max_steps=6)
    run.add_callback(StopAfter(4))
    run.train()
    assert not torch.equal(prompt_of(stopped), prompt_of(whole))

    resumed = soft(architecture, tokenizer)
    trainer(resumed, tokenizer, tmp_path / "parts", save_steps=3, max_steps=6).train(resume_from_checkpoint=True)
    assert torch.equal(prompt_of(resumed), prompt_of(whole))


# Step 3 ends the first epoch, and step 4 is in the middle of the second.
@pytest.mark.parametrize("save_steps", [3, 4])
def test_a_run_stopped_in_a_later_epoch_resumes_with_the_rows_that_are_due(save_steps, tokenizer, tmp_path):
    def train(**resume):
        model = soft("llama", tokenizer)
        settings = dict(train=10, max_steps=7, save_steps=save_steps, save_total_limit=None)
        trainer(model, tokenizer, tmp_path, **settings).train(**resume)
        return prompt_of(model)

    whole = train()
    assert torch.equal(whole, train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{save_steps}")))


class StopAfter(EarlyStoppingCallback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_begin(self, *args, **kwargs):
        pass

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_the_best_checkpoint_is_restored_and_training_stops_early(tokenizer, tmp_path):
    scores = iter([10.0, 30.0, 20.0, 20.0, 40.0, 50.0])
    model = soft("llama", tokenizer)
    run = trainer(
        model,
        tokenizer,
        tmp_path,
        score=lambda predictions, references: {"f1": next(scores)},
        callbacks=[EarlyStoppingCallback(2)],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="f1",
    )
    run.train()
    assert run.state.global_step == 4 and run.state.best_model_checkpoint.endswith("checkpoint-2")
    best = PeftModel.from_pretrained(tiny_llama(len(tokenizer)), run.state.best_model_checkpoint)
    assert torch.equal(prompt_of(best), prompt_of(model))


@pytest.mark.parametrize("architecture", BUILDERS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulated_small_batches_take_the_step_of_a_large_one(architecture, smoothing, tokenizer, tmp_path):
    large = one_step(architecture, tokenizer, tmp_path, label_smoothing_factor=smoothing, **LARGE_BATCH)
    small = one_step(architecture, tokenizer, tmp_path, label_smoothing_factor=smoothing, **SMALL_BATCHES)
    assert ((small - large).norm() / large.norm()).item() < 1e-4


def test_plain_training_arguments_evaluate_every_row_with_their_number_of_beams(tokenizer, tmp_path):
    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path)
    args = dict(output_dir=str(tmp_path), use_cpu=True, predict_with_generate=True, per_device_eval_batch_size=4)
    args |= dict(report_to="none", disable_tqdm=True, dataloader_drop_last=True, generation_num_beams=2)
    theirs = PromptTuningTrainer(
        model=run.model, args=Seq2SeqTrainingArguments(**args), processing_class=tokenizer, stop=("\n",),
        generation_kwargs={"max_new_tokens": 6}, compute_metrics=load_metrics(["squad"]),
    )  # fmt: skip
    run.generation_kwargs["num_beams"] = 2
    assert theirs.generation_kwargs["num_beams"] == 2
    assert theirs.predict_texts(run.eval_dataset) == run.predict_texts(run.eval_dataset)
    assert theirs.evaluate(run.eval_dataset)["eval_f1"] == run.evaluate()["eval_f1"]


def test_sources_of_a_single_token_get_the_same_text_in_a_batch(tokenizer, tmp_path):
    run = trainer(tiny_llama(len(tokenizer)), tokenizer, tmp_path)
    rows = Dataset.from_list([{"input_ids": [number, 9, 1], "labels": [-100, 9, 1]} for number in (30, 40, 50)])
    assert run.predict_texts(rows) == [run.predict_texts(rows.select([number]))[0] for number in range(3)]


def test_report_to_sends_the_metrics_to_tensorboard(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    run = trainer(
        soft("llama", tokenizer), tokenizer, tmp_path, max_steps=2, eval_strategy="epoch", report_to="tensorboard"
    )
    run.train()
    events = b"".join(file.read_bytes() for file in (tmp_path / "logs").rglob("events.out.tfevents*"))
    assert b"eval/f1" in events and b"train/loss" in events


def test_rows_of_an_ordinary_data_set_are_scored_against_their_labels(tokenizer, tmp_path):
    seen = []
    run = trainer(
        soft("llama", tokenizer),
        tokenizer,
        tmp_path,
        score=lambda predictions, references: seen.extend(references) or {"f1": 0.0},
    )
    run.evaluate(run.eval_dataset.select_columns(["input_ids", "labels"]))
    assert sorted(seen) == sorted(run.eval_dataset["references"])


@pytest.mark.parametrize("method", ["soft", "lora", "full"])
def test_rows_of_a_users_data_set_may_be_padded_on_either_side(method, tokenizer, tmp_path):
    base = tiny_llama(len(tokenizer))
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, init_lora_weights=False)
    model = {"soft": lambda: soft("llama", tokenizer), "lora": lambda: get_peft_model(base, lora)}.get(method)
    run = trainer(model() if model else base, tokenizer, tmp_path)
    rows = run.eval_dataset.select_columns(["input_ids", "labels"])
    expected = run.predict_texts(rows)
    loss = run.evaluate(rows)["eval_loss"]
    assert len(set(expected)) > 2
    for side in ("left", "right"):
        padded = []
        for row in rows:
            ids = row["input_ids"]
            labels = row["labels"]
            space = 120 - len(ids)
            mask = [1] * len(ids)
            left_space, right_space = (space, 0) if side == "left" else (0, space)
            padded.append({
                "input_ids": [0] * left_space + ids + [0] * right_space,
                "attention_mask": [0] * left_space + mask + [0] * right_space,
                "labels": [-100] * left_space + labels + [-100] * right_space,
            })  # fmt: skip
        assert run.predict_texts(Dataset.from_list(padded)) == expected
        assert run.evaluate(padded)["eval_loss"] == pytest.approx(loss, rel=1e-5)  # A list of rows works too.


def test_the_loss_does_not_depend_on_the_batch_when_a_rows_first_token_is_a_target(tokenizer, tmp_path):
    rows = [
        {"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in encoded(tokenizer, question_rows(7))
    ]
    alone, together = (
        trainer(
            soft("llama", tokenizer), tokenizer, tmp_path, per_device_eval_batch_size=size, predict_with_generate=False
        ).evaluate(rows)["eval_loss"]
        for size in (1, 7)
    )
    assert alone == pytest.approx(together, rel=1e-5)
    with pytest.raises(DataError, match="a row's first token is a target already, so that there is no source"):
        trainer(soft("llama", tokenizer), tokenizer, tmp_path).evaluate(rows)


def test_several_texts_for_a_row_and_a_data_set_without_a_length_are_refused(tokenizer, tmp_path):
    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path)
    with pytest.raises(RecipeError, match="num_return_sequences is 2, and a row has one prediction"):
        run.evaluate(num_beams=2, num_return_sequences=2)
    with pytest.raises(DataError, match="evaluation needs to know all rows, and a IterableDataset has no length"):
        run.evaluate(run.eval_dataset.to_iterable_dataset())


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_the_best_checkpoint_of_an_adapter_by_another_name_is_restored_and_resumed(method, tokenizer, tmp_path):
    def run(callbacks=None, **resume):
        base = tiny_llama(len(tokenizer))
        config = prompt_config(base, 4, PromptArguments(method=method, encoder_hidden_size=16))
        torch.manual_seed(2)
        model = SharedPrefixModel(base, config, adapter_name="mine")
        run = trainer(
            model, tokenizer, tmp_path, load_best_model_at_end=True, metric_for_best_model="eval_loss", eval_steps=2,
            greater_is_better=True, eval_strategy="steps", save_steps=2, learning_rate=0.5, callbacks=callbacks,
            save_total_limit=None,
        )  # fmt: skip
        run.train(**resume)
        return run

    seen = []

    class Keep(TrainerCallback):
        def on_evaluate(self, args, state, control, model, **kwargs):
            seen.append(copy.deepcopy(model.prompt_encoder["mine"].state_dict()))

    whole = run(callbacks=[Keep()])
    losses = [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]
    best = losses.index(max(losses))
    assert best < len(losses) - 1
    resumed = run(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for trained in (whole, resumed):
        for name, tensor in trained.model.prompt_encoder["mine"].state_dict().items():
            assert torch.equal(tensor, seen[best][name])


def test_several_evaluation_sets_are_evaluated_on_their_own_rows_with_persistent_workers(tokenizer, tmp_path):
    seen = []
    run = trainer(
        soft("llama", tokenizer), tokenizer, tmp_path, per_device_eval_batch_tokens=100, dataloader_num_workers=1,
        dataloader_persistent_workers=True, score=lambda predictions, references: seen.append(references) or {},
    )  # fmt: skip
    few, many = run.eval_dataset.select(range(3)), run.eval_dataset
    run.eval_dataset = {"few": few, "many": many}
    metrics = run.evaluate(max_new_tokens=2)
    assert run._gen_kwargs["max_new_tokens"] == 2
    for rows, references in zip((few, many), seen, strict=True):
        assert sorted(references) == sorted(rows["references"])
    assert metrics["eval_few_loss"] != metrics["eval_many_loss"]
    for _ in range(2):  # Workers persist, because training evaluates more than once.
        assert max(len(batch["input_ids"]) for batch in run.get_eval_dataloader(many)) == 2


def test_the_format_of_a_data_set_changes_nothing(tokenizer, tmp_path):
    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path)
    rows = run.eval_dataset
    assert run.predict_texts(rows.with_format("torch")) == run.predict_texts(rows)
    assert run.evaluate(rows.with_format("torch"))["eval_f1"] == run.evaluate(rows)["eval_f1"]


def test_an_impossible_evaluation_is_refused_with_its_reason(tokenizer, tmp_path):
    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, predict_with_generate=False, score=print)
    with pytest.raises(RecipeError, match="predict_with_generate is False"):
        run.predict(run.eval_dataset)
    run.eval_dataset = None
    with pytest.raises(ValueError, match="evaluation requires an eval_dataset"):
        run.evaluate()
    collate = DataCollatorForSeq2Seq(tokenizer, padding="longest")
    assert PromptTuningTrainer(run.model, run.args, collate, processing_class=tokenizer).data_collator is collate


def test_a_passed_generation_config_changes_the_predictions_of_a_prompt(tokenizer, tmp_path):
    penalty = GenerationConfig(repetition_penalty=50.0)
    model = soft("llama", tokenizer)
    plain, penalised = (
        trainer(model, tokenizer, tmp_path, generation_config=config).predict_texts(
            encoded(tokenizer, question_rows(7, 3))
        )
        for config in (None, penalty)
    )
    assert plain != penalised


def test_an_evaluation_before_training_ends_rows_with_the_tokenizers_end_token(tokenizer, tmp_path):
    """Use the tokenizer's end token before training, because Trainer adds it to the model when training starts."""
    model = soft("llama", tokenizer)
    model.get_base_model().generation_config.eos_token_id = 7
    trainer(model, tokenizer, tmp_path)
    assert model.get_base_model().generation_config.eos_token_id == [tokenizer.eos_token_id, 7]


def test_generation_max_length_counts_new_tokens_in_any_batch(tokenizer, tmp_path):
    rows = encoded(tokenizer, question_rows(6, 3))
    args = PromptTuningArguments(str(tmp_path), generation_max_length=5, use_cpu=True, disable_tqdm=True)
    run = PromptTuningTrainer(soft("llama", tokenizer), args, processing_class=tokenizer, eval_dataset=rows)
    together = run.predict_texts(rows)
    assert together == [run.predict_texts(rows.select([number]))[0] for number in range(len(rows))]


def test_a_plain_peft_model_and_texts_without_generation_are_refused(tokenizer, tmp_path, caplog):
    args = PromptTuningArguments(str(tmp_path), use_cpu=True)
    base = tiny_llama(len(tokenizer))
    plain = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(AdapterError, match=r"a PeftModelForCausalLM pads .*; make it by add_soft_prompt"):
        PromptTuningTrainer(plain, args, processing_class=tokenizer)
    theirs = Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True)
    run = PromptTuningTrainer(
        soft("llama", tokenizer), theirs, processing_class=tokenizer, compute_metrics=load_metrics(["squad"])
    )
    assert "evaluations give a loss and no metric, since predict_with_generate is False" in caplog.text
    with pytest.raises(RecipeError, match="predict_with_generate is False, so that nothing is written"):
        run.predict_texts(encoded(tokenizer, question_rows(2)))
