"""What transformers 5.24 gets wrong for prompts and generation; each test fails as soon as transformers mends it."""

import pytest
from datasets import Dataset
from helpers.encoder_decoder import BASES, VIRTUAL, rows, sources
from helpers.models import tiny_llama
from helpers.rows import question_rows
from helpers.trainers import encoded, soft, trainer
from peft import PromptTuningConfig, get_peft_model
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments

from prompt_tuning import Encoder, Template, encode
from prompt_tuning.models.encoder_decoder import EncoderDecoderPrefixConfig, EncoderDecoderPromptModel


def test_a_t5_with_a_shallower_encoder_generates_only_with_a_cache_of_our_own():
    base = BASES["t5, 2 and 4 layers"]()
    with pytest.raises(IndexError):
        base.generate(**sources(rows()), max_new_tokens=2)
    prefixed = EncoderDecoderPromptModel(base, EncoderDecoderPrefixConfig(num_virtual_tokens=VIRTUAL))
    assert prefixed.generate(**sources(rows()), max_new_tokens=2).shape == (4, 3)


def test_seq2seq_trainer_shows_a_causal_model_its_labels(tokenizer, tmp_path):
    model = soft("llama", tokenizer)
    # In its default order the plain trainer would mix up its rows.
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
    seen = []
    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, score=lambda *both: seen.append(both) or {"f1": 0.0})
    run.evaluate()
    assert len(seen[0][0]) == len(seen[0][1]) == 7 and all(isinstance(text, str) for text in seen[0][0])
    plain = get_peft_model(tiny_llama(len(tokenizer)), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6))
    plain_run = Trainer(
        plain, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
        data_collator=run.data_collator,
        compute_metrics=lambda found: {"longer": found.predictions.shape[1] - found.label_ids.shape[1]},
    )  # fmt: skip
    plain_rows = run.eval_dataset.select_columns(["input_ids", "labels"])
    assert plain_run.evaluate(plain_rows)["eval_longer"] == 6


def test_the_loss_of_an_evaluation_changes_with_its_batches(tokenizer, tmp_path):
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
    run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, evaluation=12)
    plain = Seq2SeqTrainer(model=run.model, args=run.args, processing_class=tokenizer, data_collator=run.data_collator)
    plain.args.per_device_eval_batch_size = 2

    def read(trainer):
        batches = list(trainer.get_eval_dataloader(run.eval_dataset))
        pairs = [pair for batch in batches for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        return [ids[mask.bool()].tolist() for ids, mask in pairs]

    in_order = list(run.eval_dataset["input_ids"])
    assert sorted(read(plain)) == sorted(in_order) != in_order != read(plain)
    assert read(run) == in_order
