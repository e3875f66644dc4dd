"""The README.md of an exported model folder."""

from __future__ import annotations

from collections.abc import Mapping

from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import counted

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [prompt-tuning]
---

# {base} with trained prompts

A copy of {base} with {tokens} more in its vocabulary. They hold trained soft prompts, one for each task:

{tasks}

The model reads these tokens and does not write them: its head is untied, and their rows in it are those of the token
that it is farthest from writing. The largest probability of one of them at {positions} positions of the tasks' rows
was {probability:.1e}.
{layers}{bias}
prompts.json holds the token ids of each task's prompt, its stop texts, its limit of new tokens and its scores. A
prompt stands before the token ids of a row, also before a beginning-of-sequence token. Send token ids: a server that
tokenizes text may put that token first, or lose a space.

```python
import json

{imports}import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file is
with open(f"{{folder}}/prompts.json", encoding="utf-8") as file:
    task = json.load(file)["tasks"]["{first}"]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
source = tokenizer("A row, rendered as {template} says").input_ids
ids = torch.tensor([task["ids"] + source])
output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=task["max_tokens"], do_sample=False)
print(tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True))
```

## Serve

```bash
vllm serve FOLDER
prompt-tuning requests FOLDER --task {first} --input rows.jsonl --url http://localhost:8000/v1 --output answers.jsonl
```

FOLDER is where this file is. The second command renders rows, sends them as token ids by OpenAI's completions API, and
writes the answers. Without `--url` it writes the requests.{gguf}
"""

BIAS = """
**Every request must carry the `logit_bias` of prompts.json.** Some servers tie the head of this architecture to its
embeddings, and then write tokens of the prompts.
"""


LAYERS = """
**Each of these tokens also has a vector for every layer**, which the layer adds to its input. Transformers reads them
after `import prompt_tuning.models.layered_llama`, and vLLM if the package prompt_tuning is installed in its
environment, by pip with `--no-deps`. Other programs do not know the architecture `prompt_tuning_llama`.
"""

IMPORT = "import prompt_tuning.models.layered_llama  # It lets transformers load this folder.\n"

GGUF = """ llama.cpp's server takes the file that
`prompt-tuning export --format gguf` adds: `llama-server --model FOLDER/model-q8_0.gguf --port 8000`. The formats
`gguf-f16` and `gguf-f32` add model-f16.gguf and model-f32.gguf, of larger weights."""


def export_card(
    base: str, tokens: Mapping[str, int], probability: float, positions: int, *, needs_bias: bool, layered: bool
) -> str:
    """Return the README.md of an export.

    Args:
        base: the name of the base model.
        tokens: the number of added tokens of each task.
        probability: the largest measured probability of one of them.
        positions: the number of positions where it was measured.
        needs_bias: whether requests must carry a logit bias.
        layered: whether tokens have vectors in every layer.
    """
    first = next(iter(tokens))
    rows = [f"- `{name}`: {counted(number, 'token')}" for name, number in tokens.items()]
    return CARD.format(
        base=base.rstrip("/").split("/")[-1],
        tokens=counted(sum(tokens.values()), "token"),
        tasks="\n".join(rows),
        positions=f"{positions:,}",
        probability=probability,
        bias=BIAS if needs_bias else "",
        layers=LAYERS if layered else "",
        imports=IMPORT if layered else "",
        gguf="" if layered else GGUF,
        first=first,
        template=f"tasks/{first}/{RunFolder.TEMPLATE}",
    )
