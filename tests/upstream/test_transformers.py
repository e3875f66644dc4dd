"""Show what transformers 5.24 and accelerate get wrong for prompts. Each test fails as soon as they mend it.

A number such as transformers#39241 is the issue of github.com/huggingface in which users reported the defect.
"""

import json

import pytest
import torch
from datasets import Dataset
from helpers.encoder_decoder import BASES, VIRTUAL, rows, sources
from helpers.models import tiny_llama
from helpers.rows import question_rows
from helpers.trainers import (
    LARGE_BATCH,
    PATIENT,
    SMALL_BATCHES,
    encoded,
    interrupt_training,
    one_step,
    prompt_of,
    soft,
    trainer,
)
from peft import PeftModelForCausalLM, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Trainer, TrainingArguments

from prompt_tuning import Encoder, PromptTuningTrainer, Template, encode
from prompt_tuning.cli.main import main
from prompt_tuning.models.encoder_decoder import EncoderDecoderPrefixConfig, EncoderDecoderPromptModel


def test_a_t5_with_a_shallower_encoder_generates_only_with_a_cache_of_our_own():
    base = BASES["t5, 2 and 4 layers"]()
    with pytest.raises(IndexError):
        base.generate(**sources(rows()), max_new_tokens=2)
    prefixed = EncoderDecoderPromptModel(base, EncoderDecoderPrefixConfig(num_virtual_tokens=VIRTUAL))
    assert prefixed.generate(**sources(rows()), max_new_tokens=2).shape == (4, 3)


def test_seq2seq_trainer_shows_a_causal_model_its_labels(tokenizer, tmp_path):
    """See transformers#26474 and transformers#44593."""
    model = soft("llama", tokenizer)
    # With length-grouped rows the plain trainer would mix up its predictions.
    run = trainer(model, tokenizer, tmp_path, train_sampling_strategy="random")
    labelled = question_rows(7, 3)
    other = [row | {"answers": {"text": ["Dakar and Riga"], "answer_start": [0]}} for row in labelled]
    honest = run.predict_texts(encoded(tokenizer, labelled))
    assert run.predict_texts(encoded(tokenizer, other)) == honest

    plain = Seq2SeqTrainer(
        model=model.get_base_model(), args=run.args, processing_class=tokenizer, data_collator=run.data_collator
    )
    shown = plain.predict(encoded(tokenizer, labelled), max_new_tokens=6).predictions
    for row, ids in zip(labelled, shown, strict=True):
        assert f"Answer: {row['answers']['text'][0]}" in tokenizer.decode([token for token in ids if token > 1])


def test_trainer_scores_logits_that_are_longer_than_labels_and_ours_scores_texts(tokenizer, tmp_path):
    """See trl#3812, which reports it for TRL's trainer."""
    seen = []
    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, score=lambda *both: seen.append(both) or {"f1": 0.0})
    run.evaluate()
    assert len(seen[0][0]) == len(seen[0][1]) == 7 and all(isinstance(text, str) for text in seen[0][0])
    plain = get_peft_model(tiny_llama(len(tokenizer)), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6))
    plain_run = Trainer(
        plain, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
        data_collator=run.data_collator,
        compute_metrics=lambda prediction: {"longer": prediction.predictions.shape[1] - prediction.label_ids.shape[1]},
    )  # fmt: skip
    plain_rows = run.eval_dataset.select_columns(["input_ids", "labels"])
    assert plain_run.evaluate(plain_rows)["eval_longer"] == 6


def test_the_loss_of_an_evaluation_changes_with_its_batches(tokenizer, tmp_path):
    """See transformers#39241."""
    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, train_sampling_strategy="random")
    longer = [row | {"answers": {"text": [row["context"]], "answer_start": [0]}} for row in question_rows(2)]
    template = Encoder(Template.load("question_answering/plain"), tokenizer)
    dataset = encode(Dataset.from_list(question_rows(4) + longer), template)[0]
    losses = []
    run.args.predict_with_generate = False
    for run.args.per_device_eval_batch_size in (1, 11):
        plain = Seq2SeqTrainer(model=run.model, args=run.args, data_collator=run.data_collator)
        losses.append(plain.evaluate(dataset.select_columns(["input_ids", "labels"]))["eval_loss"])
    assert abs(losses[0] - losses[1]) > 1e-3


def test_a_length_grouped_evaluation_mixes_up_its_rows_and_ours_does_not(tokenizer, tmp_path):
    """See transformers#33514, which brought length-grouped evaluations."""
    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, evaluation=12)
    plain = Seq2SeqTrainer(model=run.model, args=run.args, processing_class=tokenizer, data_collator=run.data_collator)
    plain.args.per_device_eval_batch_size = 2

    def read(trainer):
        rows = []
        for batch in trainer.get_eval_dataloader(run.eval_dataset):
            pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
            rows += [ids[mask.bool()].tolist() for ids, mask in pairs]
        return rows

    in_order = list(run.eval_dataset["input_ids"])
    assert sorted(read(plain)) == sorted(in_order) != in_order != read(plain)
    assert read(run) == in_order


def plain_trainer(run, trainer_class=Seq2SeqTrainer):
    """Return transformers' own trainer of the model and the rows of a run."""
    rows = run.train_dataset.select_columns(["input_ids", "labels"])
    return trainer_class(model=run.model, args=run.args, train_dataset=rows, data_collator=run.data_collator)


@pytest.mark.parametrize("save_steps", [3, 4])
def test_length_grouped_rows_have_another_order_after_a_resumption_within_an_epoch(save_steps, tokenizer, tmp_path):
    """Resume exactly from step 3, which ends the first epoch, and with other rows from step 4."""

    def train(**resume):
        settings = dict(train=10, max_steps=7, save_steps=save_steps, save_total_limit=None)
        run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, **settings)
        plain_trainer(run).train(**resume)
        return prompt_of(run.model)

    whole = train()
    resumed = train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{save_steps}"))
    assert torch.equal(whole, resumed) == (save_steps == 3)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_accumulation_for_an_encoder_decoder_takes_a_step_four_times_too_large(
    architecture, tokenizer, tmp_path, monkeypatch
):
    """See transformers#37766. The loss of these models takes no num_items_in_batch."""
    monkeypatch.setattr(PromptTuningTrainer, "compute_loss", Seq2SeqTrainer.compute_loss)
    large = one_step(architecture, tokenizer, tmp_path, **LARGE_BATCH)
    small = one_step(architecture, tokenizer, tmp_path, **SMALL_BATCHES)
    assert (small.norm() / large.norm()).item() == pytest.approx(4, rel=0.1)


def test_a_resumed_run_has_all_of_its_patience_again(recipe_file, tmp_path, monkeypatch):
    """See transformers#10290 and transformers#28544."""
    monkeypatch.setattr("prompt_tuning.runs.fitting.EarlyStopping", EarlyStoppingCallback)
    recipe = str(recipe_file(**PATIENT))
    with monkeypatch.context() as patch:
        interrupt_training(patch, step=3)
        assert main(["train", recipe]) == 130
    assert main(["train", recipe, "--resume_from_checkpoint", "true"]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["train_steps"] == 6


def test_a_prompt_that_is_not_finite_is_saved(tokenizer, tmp_path):
    class InfiniteLoss(Seq2SeqTrainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * torch.inf

    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, max_steps=2)
    plain_trainer(run, InfiniteLoss).train()
    saved = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert saved["prompt_embeddings"].isnan().all()


def test_accelerate_ignores_float16_on_a_cpu_without_a_warning(tokenizer, tmp_path):
    losses = []
    for settings in ({}, {"fp16": True}):
        run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, max_steps=2, **settings)
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


def test_trainer_writes_a_model_card_with_placeholders(llama, tmp_path):
    model = PeftModelForCausalLM(llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    Trainer(model, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)).create_model_card()
    assert "More information needed" in (tmp_path / "README.md").read_text()
