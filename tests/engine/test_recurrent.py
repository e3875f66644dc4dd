"""Check models whose layers pass on a state instead of keys and values: they take soft prompts and no prefixes."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from helpers.architectures import ROWS, TOKENS, left_padded, reference_greedy, reference_loss, right_padded
from transformers import AutoConfig, AutoModelForCausalLM

from prompt_tuning import Encoder, Predictor, Template, add_soft_prompt, prompt_config
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.cli.main import main
from prompt_tuning.errors import ModelError
from prompt_tuning.training.losses import SCALED_LOGITS, teacher_states

PROMPT = 5
COMMON = TOKENS | dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    initializer_range=0.3,
)  # fmt: skip
LINEAR = dict(
    head_dim=8, linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8
)
MAMBA = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1)
EXPERTS = dict(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16)
SETTINGS = {
    "mamba": TOKENS | dict(hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.3),
    "qwen3_next": COMMON | LINEAR | EXPERTS,
    "qwen3_5_text": COMMON | LINEAR,
    "falcon_h1": COMMON | MAMBA | dict(mamba_d_ssm=64),
    "bamba": COMMON | MAMBA | dict(attn_layer_indices=[1, 3]),
    "recurrent_gemma": COMMON | dict(num_hidden_layers=3, num_key_value_heads=1, lru_width=32),
}


SETTINGS_OF_GENERATION = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)


def build(architecture):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SETTINGS[architecture])
    return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


@pytest.fixture(params=SETTINGS)
def base(request):
    return build(request.param)


def test_cpt_has_a_finite_loss_and_a_teacher_reads_rows_with_a_common_prefix(base):
    args = PromptArguments(method="cpt")
    assert add_soft_prompt(base, prompt_config(base, 4, args, [5, 6, 7, 8]))(**right_padded()).loss.isfinite()
    if base.config.model_type in SCALED_LOGITS:
        return  # Such a model cannot be a teacher.
    base = build(base.config.model_type)
    shared = [[3, 4, *row] for row in ROWS]
    rows = [{"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:], "row": n} for n, ids in enumerate(shared)]
    states = teacher_states(base, Dataset.from_list(rows), 400)
    for number, ids in enumerate(shared):
        alone = base(torch.tensor([ids])).logits[0, -2]
        teacher_logits = base.get_output_embeddings()(states[number])[0]
        torch.testing.assert_close(teacher_logits, alone, rtol=1e-4, atol=1e-4)


def test_a_batch_with_a_soft_prompt_has_the_loss_and_text_of_single_rows(base):
    torch.manual_seed(1)
    prompt = torch.randn(PROMPT, 32)
    model = add_soft_prompt(base, prompt_config(base, PROMPT), prompt)
    assert model(**right_padded()).loss.item() == pytest.approx(reference_loss(base, prompt).item(), rel=1e-5)
    sources = [torch.tensor(row) for row in ROWS]
    width = max(map(len, sources))
    ids = torch.stack([F.pad(row, (width - len(row), 0)) for row in sources])
    mask = torch.stack([F.pad(torch.ones_like(row), (width - len(row), 0)) for row in sources])
    written = model.generate(input_ids=ids, attention_mask=mask, **SETTINGS_OF_GENERATION)[:, width:].tolist()
    assert written == [reference_greedy(base, prompt, row, 6) for row in ROWS]
    assert len({tuple(row) for row in written}) > 1  # Equal texts would show nothing.


def test_a_prefix_is_refused(base):
    with pytest.raises(ModelError, match=r"recurrent layers, which have none\. Take method prompt_tuning or lora"):
        prompt_config(base, PROMPT, PromptArguments(method="prefix_tuning"))


def test_a_prefix_is_refused_before_weights_are_read(recipe_file, tokenizer, tmp_path, capsys):
    AutoConfig.for_model("mamba", **SETTINGS["mamba"]).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    recipe = recipe_file(method="prefix_tuning", model_name_or_path=tmp_path / "mamba")
    assert main(["train", str(recipe)]) == 1
    assert "prefix_tuning puts keys and values into every layer, and mamba has recurrent" in capsys.readouterr().err


def test_a_stop_text_is_searched_only_after_the_source_of_its_row(tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model("mamba", **(SETTINGS["mamba"] | {"vocab_size": len(tokenizer)}))
    base = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    predictor = Predictor(
        add_soft_prompt(base, prompt_config(base, PROMPT)).eval(),
        Encoder(Template("{{ text }}", "{{ text }}", stop=("\n",)), tokenizer),
        {"max_new_tokens": 5},
    )
    rows = [{"text": "Ada"}, {"text": "One line.\nAnother line.\nWhere does Ada live?"}]
    assert predictor(rows) == [predictor([row])[0] for row in rows]
    assert all(predictor(rows))


def test_padding_changes_no_logits_of_a_forward_without_labels(base):
    model = add_soft_prompt(base, prompt_config(base, PROMPT), torch.randn(PROMPT, 32)).eval()
    batch = left_padded()
    with torch.no_grad():
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        for number, row in enumerate(ROWS):
            expected = model(torch.tensor([row])).logits[0, PROMPT:]
            torch.testing.assert_close(logits[number, -len(row) :], expected, rtol=1e-4, atol=1e-4)
