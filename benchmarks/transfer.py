"""Move a soft prompt to another model of a family, by a linear map between the embeddings of their common tokens.

The map W makes E_old W nearest to E_new over the tokens that both vocabularies have (v2v-lin of Lester et al. 2022,
"Reducing Retraining by Recycling Parameter-Efficient Prompts"; Su et al. 2022, "On Transferability of Prompt Tuning",
train a projector instead). The moved prompt is saved as an adapter of the new model: a recipe starts from it with
`init: adapter`.

    python benchmarks/transfer.py runs/soft_prompt --model NEW_MODEL --output runs/moved

Without --model the losses of a few rows are printed for two stand-ins, since one model is here: the benchmarks' model
with its states rotated, which is the same function in other coordinates, and the model without some of its layers.
"""

import argparse
import copy
from pathlib import Path

import torch
from common import MODEL, base_model, quickstart_rows, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from prompt_tuning import Template, add_soft_prompt, prompt_config
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.models.initialization import initial_prompt, saved_prompt
from prompt_tuning.support.tables import markdown_table


def embeddings(model, ids: list[int]) -> torch.Tensor:
    """Return the embeddings of tokens `[N, H]`, scaled as the model reads them."""
    return model.get_input_embeddings()(torch.tensor(ids, device=model.device)).detach().double().cpu()


def moved(prompt: torch.Tensor, old, new, old_ids: list[int], new_ids: list[int]) -> torch.Tensor:
    """Return a prompt `[P, H]` of one model for another model, `[P, H']`.

    Args:
        prompt: the prompt.
        old: the model that it was trained on.
        new: the other model.
        old_ids: the common tokens as ids of the old model.
        new_ids: the same tokens as ids of the new model.
    """
    linear = torch.linalg.lstsq(embeddings(old, old_ids), embeddings(new, new_ids)).solution
    return (prompt.double() @ linear).float()


def common_ids(old, new) -> tuple[list[int], list[int]]:
    """Return the ids of the tokens that two tokenizers have in common, as each of them counts."""
    vocabulary = new.get_vocab()
    pairs = [(number, vocabulary[token]) for token, number in old.get_vocab().items() if token in vocabulary]
    first, second = zip(*pairs, strict=True)
    return list(first), list(second)


@torch.no_grad()
def rotated(model, seed: int = 0):
    """Return a copy of a Llama whose states are multiplied by an orthogonal matrix, which writes the same logits."""
    model = copy.deepcopy(model)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    size = table.shape[1]
    turn = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]

    def read(linears, norm) -> None:
        for linear in linears:
            linear.weight = torch.nn.Parameter((linear.weight * norm.weight) @ turn, requires_grad=False)
        norm.weight.fill_(1)

    read([head], model.model.norm)  # A tied head gets weights of its own.
    model.config.tie_word_embeddings = False
    table.copy_(table @ turn)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        read([attention.q_proj, attention.k_proj, attention.v_proj], layer.input_layernorm)
        read([mlp.gate_proj, mlp.up_proj], layer.post_attention_layernorm)
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight.copy_(turn.T @ linear.weight)
    return model


def without_layers(model, dropped: range):
    """Return a copy of a Llama without some of its layers."""
    model = copy.deepcopy(model)
    model.model.layers = torch.nn.ModuleList(
        layer for number, layer in enumerate(model.model.layers) if number not in dropped
    )
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = len(model.model.layers)
    return model


@torch.no_grad()
def loss(base, prompt: torch.Tensor | None, batch) -> float:
    """Return the loss of a batch behind a prompt, or of the model alone."""
    if prompt is None:
        return base(**batch).loss.item()
    return add_soft_prompt(base, prompt_config(base, len(prompt)), prompt).eval()(**batch).loss.item()


def measure(prompt: torch.Tensor, num_rows: int) -> str:
    """Return a table of losses, model by model."""
    words, base = tokenizer(), base_model()
    encoder = Encoder(Template.load("question_answering/instruction_last"), words)
    rows = [encoder.row(row) for row in quickstart_rows("test")[:num_rows]]
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
    batch = dict(DataCollatorForSeq2Seq(words)(rows))
    ids = sorted(words.get_vocab().values())
    layers = range(12, 14)
    models = {
        "the same": base,
        "states rotated": rotated(base),
        f"without layers {layers.start} to {layers.stop - 1} of {len(base.model.layers)}": without_layers(
            base, layers
        ),
    }
    table = []
    for name, model in models.items():
        drawn = initial_prompt(model, words, PromptArguments(), len(prompt), seed=0)
        prompts = (None, drawn, moved(prompt, base, model, ids, ids))
        table.append((name, *(f"{loss(model, start, batch):.4f}" for start in prompts)))
    return markdown_table(("model", "no prompt", "sampled tokens", "moved prompt"), table)


def main(args: list[str] | None = None) -> None:
    """Move the prompt, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", help="folder of a soft prompt")
    parser.add_argument("--old_model", default=MODEL, help="the model that it was trained on")
    parser.add_argument("--model", help="the model to move it to")
    parser.add_argument("--output", type=Path, help="folder for the moved prompt")
    parser.add_argument("--rows", type=int, default=8, help="rows of the quickstart that are measured")
    options = parser.parse_args(args)
    prompt = saved_prompt(options.adapter)
    if not options.model:
        print(measure(prompt, options.rows))
        return
    old, new = map(AutoModelForCausalLM.from_pretrained, (options.old_model, options.model))
    ids = common_ids(*map(AutoTokenizer.from_pretrained, (options.old_model, options.model)))
    start = moved(prompt, old, new, *ids)
    add_soft_prompt(new, prompt_config(new, len(start)), start).save_pretrained(options.output)
    print(f"{len(ids[0])} common tokens; written to {options.output}")


if __name__ == "__main__":
    main()
