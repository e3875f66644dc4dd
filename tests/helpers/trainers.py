"""Build trainers on tiny models and rows that a template encodes, without a recipe."""

import torch
from datasets import Dataset

from helpers.models import tiny_bart, tiny_llama, tiny_t5
from helpers.rows import question_rows
from prompt_tuning import (
    Encoder,
    PromptTuningArguments,
    PromptTuningTrainer,
    Template,
    add_soft_prompt,
    encode,
    load_metrics,
    prompt_config,
)

BUILDERS = {"llama": tiny_llama, "t5": tiny_t5, "bart": tiny_bart}
LARGE_BATCH = dict(per_device_train_batch_size=8)
SMALL_BATCHES = dict(per_device_train_batch_size=2, gradient_accumulation_steps=4)
# No score is better than the first one, so that a patience of 3 ends with the fourth evaluation.
PATIENT = dict(
    max_steps=8, save_steps=1, eval_steps=1, eval_strategy="steps", load_best_model_at_end="true", learning_rate=0,
    early_stopping_patience=3, max_eval_samples=2,
)  # fmt: skip


def encoded(tokenizer, rows, is_encoder_decoder=False):
    encoder = Encoder(Template.load("question_answering/plain"), tokenizer, is_encoder_decoder, max_target_tokens=12)
    dataset, report = encode(Dataset.from_list(rows), encoder, training=True)
    assert not report.problems
    return dataset


def soft(architecture, tokenizer):
    base = BUILDERS[architecture](len(tokenizer))
    torch.manual_seed(2)
    return add_soft_prompt(base, prompt_config(base, 6))


def prompt_of(model):
    return model.prompt_encoder["default"].embedding.weight.detach().clone()


def trainer(model, tokenizer, output_dir, train=24, evaluation=7, callbacks=None, score=None, **settings):
    is_encoder_decoder = model.config.is_encoder_decoder
    settings = (
        dict(per_device_train_batch_size=4, max_steps=6, use_cpu=True, disable_tqdm=True, logging_steps=1) | settings
    )
    return PromptTuningTrainer(
        model=model,
        args=PromptTuningArguments(output_dir=str(output_dir), **settings),
        processing_class=tokenizer,
        train_dataset=encoded(tokenizer, question_rows(train), is_encoder_decoder),
        eval_dataset=encoded(tokenizer, question_rows(evaluation, 3), is_encoder_decoder),
        compute_metrics=score or load_metrics(["squad"]),
        generation_kwargs={"max_new_tokens": 6},
        stop=("\n",),
        callbacks=callbacks,
    )


def one_step(architecture, tokenizer, folder, **settings):
    """Return how far one step of plain gradient descent moves the prompt."""
    model = soft(architecture, tokenizer)
    start = prompt_of(model)
    descent = dict(optim="sgd", max_grad_norm=0.0, learning_rate=1.0, warmup_steps=0, max_steps=1)
    run = trainer(model, tokenizer, folder, train_sampling_strategy="sequential", **descent, **settings)
    if settings.get("per_device_train_batch_size") == 2:
        assert run.args.gradient_accumulation_steps == 4
    run.train()
    return prompt_of(model) - start


def interrupt_training(monkeypatch, step):
    """Let the training step after `step` raise KeyboardInterrupt."""
    training_step = PromptTuningTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(PromptTuningTrainer, "training_step", interrupted)


def soft_trainer(llama, tokenizer, folder, **settings):
    """Return a trainer that takes two steps of a soft prompt."""
    rows = Encoder(Template.load("question_answering/plain"), tokenizer)
    rows, _ = encode(Dataset.from_list(question_rows(24)), rows, training=True)
    args = PromptTuningArguments(
        str(folder), max_steps=2, logging_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, **settings
    )
    model = add_soft_prompt(llama, prompt_config(llama, 4))
    return PromptTuningTrainer(model=model, args=args, processing_class=tokenizer, train_dataset=rows)
