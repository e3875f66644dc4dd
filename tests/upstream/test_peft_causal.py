"""Show what PEFT 0.21.2 gets wrong for prompts of causal models. Each test fails as soon as PEFT mends it.

A number such as peft#2123 is the issue of github.com/huggingface in which users reported the defect.
"""

import pytest
import torch
import torch.distributed as dist
from helpers.architectures import (
    PROMPT,
    ROWS,
    build,
    left_padded,
    reference_greedy,
    reference_loss,
    right_padded,
)
from peft import (
    CPTConfig,
    MultitaskPromptTuningConfig,
    PeftModel,
    PeftModelForCausalLM,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from torch.distributed.fsdp import fully_shard
from transformers import MambaConfig, MambaForCausalLM

from prompt_tuning import add_soft_prompt, load_adapter, prompt_config
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.engine.shared_prefix import SharedPrefixModel

# PEFT gives this warning each time it generates with a prompt.
pytestmark = pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
CAUSAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": PROMPT}
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
PROJECTION = {"encoder_hidden_size": 16}


def plain_model(config, base=None):
    """Return plain PEFT's model with a prompt that changes what the base model writes."""
    torch.manual_seed(1)
    model = PeftModelForCausalLM(base or build("llama"), config)
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def written(model, rows, **settings):
    """Return the new tokens of each row, given as one left-padded batch."""
    batch = pad_left(rows, 0)
    return model.generate(**batch, **(GREEDY | settings))[:, batch["input_ids"].shape[1] :].tolist()


def written_step_by_step(model, row):
    """Return the new tokens of one row by PEFT's forward, which is right, without `generate`."""
    ids = list(row)
    for _ in range(GREEDY["max_new_tokens"]):
        ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[len(row) :]


def test_with_a_cache_a_prompt_comes_again_before_every_new_token():
    """See peft#2123. Now transformers 5.24 passes `cache`, and PEFT looks for `past_key_values`."""
    model = plain_model(PromptTuningConfig(**CAUSAL))
    expected = written_step_by_step(model, ROWS[0])
    assert written(model, ROWS[:1], use_cache=False) == [expected]
    assert written(model, ROWS[:1]) != [expected]


@pytest.mark.filterwarnings("ignore:Both `past_key_values` and `cache` are set:FutureWarning")
def test_a_prefix_is_lost_after_the_first_new_token():
    model = plain_model(PrefixTuningConfig(**CAUSAL))
    expected = written_step_by_step(model, ROWS[0])
    assert written(model, ROWS[:1])[0][0] == expected[0]
    assert written(model, ROWS[:1])[0] != expected


def test_a_left_padded_row_has_another_loss():
    """See peft#1093. The row becomes [prompt, padding, text], and its position ids are dropped."""
    base = build("llama")
    model = plain_model(PromptTuningConfig(**CAUSAL), base)
    weight = model.prompt_encoder["default"].embedding.weight
    assert abs(model(**left_padded()).loss.item() - reference_loss(base, weight).item()) > 1e-2


def test_a_left_padded_row_gets_another_text_than_a_single_row():
    """See peft#1093."""
    model = plain_model(PromptTuningConfig(**CAUSAL))
    alone = written(model, ROWS[1:2], use_cache=False)[0]
    assert alone != written(model, ROWS[1:3], use_cache=False)[0]


def test_the_prompt_is_computed_for_every_row_and_logits_for_every_position():
    base = build("llama")
    model = plain_model(PrefixTuningConfig(**CAUSAL, prefix_projection=True, **PROJECTION), base)
    rows = []
    model.prompt_encoder["default"].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    assert model(**right_padded()).logits.shape[:2] == right_padded()["labels"].shape
    assert rows == [len(ROWS)]


def tiny_mamba():
    config = MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.3)
    torch.manual_seed(0)
    return MambaForCausalLM(config).requires_grad_(False).eval()


def test_mamba_ignores_a_prefix():
    base = tiny_mamba()
    model = plain_model(PrefixTuningConfig(**CAUSAL, num_attention_heads=1), base)
    assert written(model, ROWS[:1]) == written(base, ROWS[:1])


def test_mamba_reads_a_prompt_at_every_new_token():
    base = tiny_mamba()
    model = plain_model(PromptTuningConfig(**CAUSAL, num_attention_heads=1), base)
    weight = model.prompt_encoder["default"].embedding.weight
    assert written(model, ROWS[:1]) != [reference_greedy(base, weight, ROWS[0], GREEDY["max_new_tokens"])]


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(**CAUSAL),
        PromptEncoderConfig(**CAUSAL, **PROJECTION),
        PrefixTuningConfig(**CAUSAL),
        CPTConfig(**CAUSAL, cpt_token_ids=[1, 2, 3, 4, 5], cpt_mask=[1] * 5, cpt_tokens_type_mask=[1] * 5),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_training_never_continues_from_a_saved_prompt(config, tmp_path):
    """See peft#2256, which found "no good way around this"."""
    plain_model(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError):
        PeftModel.from_pretrained(build("llama"), tmp_path, is_trainable=True)


def test_p_tuning_resumes_to_another_model(tmp_path):
    """Show that PEFT loads the output of the encoder as its input."""
    model = plain_model(PromptEncoderConfig(**CAUSAL, **PROJECTION))
    prompt = model.get_prompt(1)
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert not torch.allclose(model.get_prompt(1), prompt, atol=1e-3)


def test_a_projected_prefix_never_resumes(tmp_path):
    """See peft#2256. The file holds the output of the MLP, and the MLP is built again."""
    model = plain_model(PrefixTuningConfig(**CAUSAL, prefix_projection=True, **PROJECTION))
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError):
        model.load_adapter(tmp_path, "default", is_trainable=True)


def test_a_model_that_checkpoints_activations_takes_no_prefix():
    """See peft#869."""
    base = build("llama")
    base.activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ValueError):
        PeftModelForCausalLM(base, PrefixTuningConfig(**CAUSAL))


def cpt_config():
    return prompt_config(build("llama"), PROMPT, PromptArguments(method="cpt"), ids=range(20, 20 + PROMPT))


def test_cpt_works_only_under_the_name_default():
    batch = right_padded()
    with pytest.raises(KeyError, match="default"):
        PeftModelForCausalLM(build("llama"), cpt_config(), adapter_name="mine")(**batch)
    losses = [
        SharedPrefixModel(build("llama"), cpt_config(), adapter_name=name)(**batch).loss.item()
        for name in ("mine", "default")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize(("model_class", "changed"), [(PeftModelForCausalLM, True), (SharedPrefixModel, False)])
def test_cpt_changes_the_mask_that_a_caller_passes(model_class, changed):
    ids = torch.tensor([ROWS[3]])
    mask = torch.full(ids.shape, 4.0)
    model = model_class(build("llama"), cpt_config())
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, input_type_mask=mask)
    assert bool((mask != 4).any()) == changed


def test_cpt_adds_its_change_twice_when_it_loads_in_place(tmp_path):
    model = add_soft_prompt(build("llama"), cpt_config())
    model.prompt_encoder["default"].delta_embedding.weight.data.normal_(std=0.01)
    prompt = model.get_prompt(1).detach()
    model.save_pretrained(tmp_path)
    PeftModelForCausalLM.load_adapter(model, tmp_path, "default", is_trainable=True)
    assert not torch.allclose(model.get_prompt(1), prompt, atol=1e-3)
    assert torch.allclose(load_adapter(build("llama"), tmp_path).get_prompt(1), prompt, atol=1e-6)


def test_the_prompts_of_all_tasks_start_near_zero():
    base = build("llama")
    model = PeftModelForCausalLM(
        base, MultitaskPromptTuningConfig(**CAUSAL, num_tasks=3, num_transformer_submodules=1)
    )
    embedded = base.get_input_embeddings().weight.std()
    assert model.get_prompt(1, torch.tensor([1])).std() < 0.01 * embedded


def test_the_names_of_adapters_are_ignored():
    """See peft#759, which asked for a prompt for each row of a batch. LoRA has this."""
    model = plain_model(PromptTuningConfig(**CAUSAL))
    model.add_adapter("other", PromptTuningConfig(**CAUSAL))
    loss = model(**right_padded()).loss
    assert torch.equal(model(**right_padded(), adapter_names=["other"] * len(ROWS)).loss, loss)


def test_a_model_split_by_fsdp2_never_generates():
    """See peft#1633. The hook of the root module never runs. Here one process splits the model."""
    model = plain_model(PromptTuningConfig(**CAUSAL))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for layer in model.get_base_model().model.layers:
            fully_shard(layer)
        fully_shard(model)
        with pytest.raises(RuntimeError, match="DTensor"):
            written(model, ROWS[:1])
    finally:
        dist.destroy_process_group()
