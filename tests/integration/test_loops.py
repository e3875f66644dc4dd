"""Run transformers' and TRL's own trainers, and a loop of accelerate, on models with a prompt.

trl is not among the test requirements: `pip install trl` lets its tests run.
"""

import copy
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from helpers.rows import question_rows
from helpers.trainers import encoded, prompt_of, soft
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    get_scheduler,
)

from prompt_tuning import PromptTuningArguments, PromptTuningTrainer
from prompt_tuning.errors import AdapterError

COLUMNS = ["input_ids", "labels"]
SETTINGS = dict(
    max_steps=3, per_device_train_batch_size=4, learning_rate=3e-2, lr_scheduler_type="linear", warmup_steps=0,
    train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True,
    report_to="none",
)  # fmt: skip


def rows_of(tokenizer, architecture):
    """Return training and evaluation rows with the columns that a model's forward takes."""
    is_encoder_decoder = architecture != "llama"
    train, evaluated = (
        encoded(tokenizer, question_rows(*size), is_encoder_decoder).select_columns(COLUMNS)
        for size in ((12,), (5, 3))
    )
    return train, evaluated


def reference(architecture, tokenizer, folder):
    """Return the prompt, evaluation loss and predictions of PromptTuningTrainer."""
    train, evaluated = rows_of(tokenizer, architecture)
    trainer = PromptTuningTrainer(
        soft(architecture, tokenizer), PromptTuningArguments(str(folder / "reference"), **SETTINGS),
        train_dataset=train, eval_dataset=evaluated, processing_class=copy.deepcopy(tokenizer),
        generation_kwargs={"max_new_tokens": 6},
    )  # fmt: skip
    trainer.train()
    return prompt_of(trainer.model), trainer.evaluate()["eval_loss"], trainer.predict(evaluated).predictions


def new_tokens(ids, tokenizer):
    """Return the ids of each row up to padding, without the start."""
    return [[token for token in row if token not in (-100, tokenizer.pad_token_id)] for row in ids.tolist()]


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_a_summarization_script_trains_and_writes_the_same(architecture, tokenizer, tmp_path):
    train, evaluated = rows_of(tokenizer, architecture)
    prompt, loss, predictions = reference(architecture, tokenizer, tmp_path)
    model = soft(architecture, tokenizer)
    model.get_base_model().generation_config.eos_token_id = tokenizer.eos_token_id

    def compute_metrics(eval_predictions):
        ids, labels = eval_predictions
        ids, labels = (np.where(part != -100, part, tokenizer.pad_token_id) for part in (ids, labels))
        texts, expected = (tokenizer.batch_decode(part, skip_special_tokens=True) for part in (ids, labels))
        return {"exact": float(np.mean([a.strip() == b.strip() for a, b in zip(texts, expected, strict=True)]))}

    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(str(tmp_path), predict_with_generate=True, **SETTINGS),
        train_dataset=train,
        eval_dataset=evaluated,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=-100),
        compute_metrics=compute_metrics,
    )
    trainer.train()
    assert torch.allclose(prompt_of(model), prompt, atol=1e-6)
    metrics = trainer.evaluate(max_new_tokens=6, num_beams=1)
    assert metrics["eval_loss"] == pytest.approx(loss, abs=1e-5) and "eval_exact" in metrics
    output = trainer.predict(evaluated, max_new_tokens=6, num_beams=1)
    written = new_tokens(output.predictions[:, 1:], tokenizer)
    assert written == new_tokens(predictions, tokenizer) and "test_exact" in output.metrics


@pytest.mark.parametrize("architecture", ["llama", "t5", "bart"])
def test_a_loop_of_accelerate_trains_and_writes_the_same(architecture, tokenizer, tmp_path):
    train, evaluated = rows_of(tokenizer, architecture)
    prompt, _, predictions = reference(architecture, tokenizer, tmp_path)
    model = soft(architecture, tokenizer)
    model.get_base_model().generation_config.eos_token_id = tokenizer.eos_token_id
    if architecture == "llama":
        sources = [sum(label == -100 for label in labels) for labels in evaluated["labels"]]
        ids = [ids[:length] for ids, length in zip(evaluated["input_ids"], sources, strict=True)]
        evaluated = Dataset.from_dict({"input_ids": ids, "labels": ids})
    accelerator = Accelerator(cpu=True)
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    train_loader = DataLoader(train, batch_size=4, collate_fn=collator)
    eval_loader = DataLoader(
        evaluated.remove_columns("labels"),
        batch_size=2,
        collate_fn=lambda rows: tokenizer.pad(rows, return_tensors="pt"),
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-2, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=3)
    model, optimizer, train_loader, eval_loader, schedule = accelerator.prepare(
        model, optimizer, train_loader, eval_loader, schedule
    )
    model.train()
    for batch in train_loader:
        accelerator.backward(model(**batch).loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert torch.allclose(prompt_of(accelerator.unwrap_model(model)), prompt, atol=1e-5)

    model.eval()
    written = []
    for batch in eval_loader:
        with torch.no_grad():
            generated = accelerator.unwrap_model(model).generate(
                batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=6, do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        generated = accelerator.pad_across_processes(generated, dim=1, pad_index=tokenizer.pad_token_id)
        generated = accelerator.gather_for_metrics(generated)
        start = batch["input_ids"].shape[1] if architecture == "llama" else 1
        written += new_tokens(generated[:, start:], tokenizer)
    assert written == new_tokens(predictions, tokenizer)


def plain_trainer(cls, arguments, tokenizer, folder, **settings):
    train, evaluated = rows_of(tokenizer, "llama")
    return cls(
        model=soft("llama", tokenizer),
        args=arguments(str(folder), **SETTINGS | settings),
        train_dataset=train,
        eval_dataset=evaluated,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )


@pytest.mark.parametrize(
    ("cls", "arguments"), [(Trainer, TrainingArguments), (Seq2SeqTrainer, Seq2SeqTrainingArguments)]
)
def test_transformers_trainers_train_a_causal_prompt_to_the_same_prompt(cls, arguments, tokenizer, tmp_path):
    prompt, loss, _ = reference("llama", tokenizer, tmp_path)
    trainer = plain_trainer(cls, arguments, tokenizer, tmp_path)
    trainer.train()
    assert torch.allclose(prompt_of(trainer.model), prompt, atol=1e-6)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, abs=1e-5)


def test_a_causal_prompt_generates_nothing_from_rows_that_hold_their_answers(tokenizer, tmp_path):
    trainer = plain_trainer(Seq2SeqTrainer, Seq2SeqTrainingArguments, tokenizer, tmp_path, predict_with_generate=True)
    trainer.train()
    with pytest.raises(AdapterError, match=r"labels knows nothing of the prompt.* and the answers out of input_ids"):
        trainer.predict(trainer.eval_dataset)


needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed: pip install trl")


def answers():
    """Return prompts and completions."""
    texts = [(f"Question: {row['question']}", f" {row['answers']['text'][0]}") for row in question_rows(12)]
    return Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in texts])


@needs_trl
@pytest.mark.filterwarnings("default")
def test_trls_trainer_packs_no_texts_behind_one_prompt(tokenizer, tmp_path):
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=soft("llama", tokenizer),
        args=SFTConfig(str(tmp_path), bf16=False, packing=True, max_length=64, **SETTINGS),
        train_dataset=answers(), processing_class=tokenizer,
    )  # fmt: skip
    with pytest.raises(AdapterError, match="position_ids out, and give each text a row of its own"):
        trainer.train()


@needs_trl
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_trls_trainer_takes_the_steps_of_plain_peft(loss_type, tokenizer, tmp_path):
    from peft import PeftModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    data = answers()
    prompts, losses = [], []
    for ours in (True, False):
        model = soft("llama", tokenizer)
        if not ours:
            weights = prompt_of(model)
            base = model.get_base_model()
            base.set_attn_implementation("sdpa")
            model = PeftModelForCausalLM(base, model.peft_config["default"])
            model.prompt_encoder["default"].embedding.weight.data = weights
        settings = SETTINGS | {"learning_rate": 1e-2}
        trainer = SFTTrainer(
            model=model, args=SFTConfig(str(tmp_path), bf16=False, loss_type=loss_type, **settings),
            train_dataset=data, eval_dataset=data, processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        losses.append(trainer.evaluate()["eval_loss"])
        prompts.append(prompt_of(model))
    assert torch.allclose(*prompts, atol=1e-5) and losses[0] == pytest.approx(losses[1], abs=1e-5)
