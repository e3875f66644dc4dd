# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first prompt: from a data frame to a chart
#
# A small language model learns to answer questions about short pages. Its weights stay as they are: only a prompt is
# trained. Start the notebook in the folder of this repository, after `make quickstart` or any other way to the model.

# %%
import pandas as pd

import prompt_tuning as pt

MODEL = "models/SmolLM2-135M-Instruct"
MAX_STEPS = 40

# %% [markdown]
# ## The rows
#
# Any data frame will do, with columns of any name. This one has 24 questions about 8 pages.

# %%
frame = pd.read_csv("docs/how-to/own/questions.csv")
frame.head()

# %% [markdown]
# ## The recipe
#
# A recipe is a dict. `prompt-tuning init docs/how-to/own/questions.csv` proposes such settings with reasons.
# Rows of one page stay on one side when test rows are cut from the others, so that no answer leaks.

# %%
recipe = {
    "model_name_or_path": MODEL,
    "task": "question_answering",
    "context_column": "page",
    "question_column": "ask",
    "answer_column": "reply",
    "template": "question_answering/instruction_last",
    "test_size": 6,
    "method": "prompt_tuning",
    "init": "demonstrations",
    "init_demonstrations": 2,
    "max_source_tokens": 192,
    "max_target_tokens": 32,
    "per_device_train_batch_size": 4,
    "max_steps": MAX_STEPS,
    "logging_steps": 2,
    "output_dir": "runs/first_prompt",
}

# %% [markdown]
# ## Train
#
# The run is evaluated twice, with the trained prompt and without it. Its folder is the one that
# `prompt-tuning train` writes.

# %%
run = pt.train(recipe, train_dataset=frame)
run

# %% [markdown]
# ## Look at the answers
#
# Six rows are few: a score of them says little. Look at what the prompt changed.

# %%
answers = pd.DataFrame(run.predictions)[["references", "hard_prompt", "soft_prompt"]]
answers

# %% [markdown]
# ## A chart
#
# The loss of the training rows by step, and the score of both prompts on the test rows.

# %%
log = pd.DataFrame(run.log_history)
axes = log.dropna(subset="loss").plot(x="step", y="loss", title="Loss of the training rows", legend=False)
axes.figure.savefig("loss.png")

# %%
scores = pd.DataFrame({name: run.results[name] for name in ("hard_prompt", "soft_prompt")}).loc[["exact_match", "f1"]]
axes = scores.T.plot.bar(rot=0, ylim=(0, 100), title="Scores of the test rows")
axes.figure.savefig("scores.png")

# %% [markdown]
# ## Predict
#
# The predictor takes a data frame, too.

# %%
predict = run.predictor()
mine = pd.DataFrame({"page": ["The mill at Tarn grinds rye on Fridays."], "ask": ["When does the mill grind rye?"]})
predict(mine)
