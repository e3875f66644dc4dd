"""Show what PEFT 0.21.2 gets wrong for prompts of encoder-decoder models. Each test fails as soon as PEFT mends it.

A number such as peft#385 is the issue of github.com/huggingface in which users reported the defect.
"""

from itertools import combinations

import pytest
import torch
from helpers import encoder_decoder as tiny
from helpers.models import tiny_t5
from peft import PeftModel, PeftModelForSeq2SeqLM, PrefixTuningConfig
from transformers import T5Config, T5ForConditionalGeneration


def plain_prefix(base):
    torch.manual_seed(1)
    return PeftModelForSeq2SeqLM(base, tiny.soft_config(PrefixTuningConfig))


def test_two_decoder_layers_have_one_prefix_and_half_of_the_slots_no_gradient():
    model = plain_prefix(tiny.seeded(T5ForConditionalGeneration, T5Config(**(tiny.T5 | {"num_layers": 6}))))
    layers = model.get_prompt(1).self_attention_cache.layers
    pairs = combinations(range(6), 2)
    assert [(i, j) for i, j in pairs if torch.equal(layers[i].keys, layers[j].keys)] == [(0, 3), (1, 4), (2, 5)]
    model(**tiny.batch(tiny.rows())).loss.backward()
    by_slot = tiny.weight(model).grad.view(tiny.VIRTUAL, 12, 32).abs().sum((0, 2)) > 0
    assert by_slot.tolist() == [True, True, False, False] * 3


@pytest.mark.parametrize("name", ["flan-t5", "mt5", "t5, 2 and 4 layers", "bart, 2 and 4 layers"])
def test_other_geometries_and_shallower_encoders_take_no_prefix(name):
    """See peft#385, which reports it for flan-t5-small."""
    with pytest.raises((RuntimeError, IndexError)):
        plain_prefix(tiny.BASES[name]())(**tiny.batch(tiny.rows()))


@pytest.mark.filterwarnings("ignore:Both `past_key_values` and `cache` are set:FutureWarning")
@torch.no_grad()
def test_a_prefix_writes_another_text_without_a_cache():
    model = plain_prefix(tiny.BASES["bart"]())
    cached = tiny.greedy(model, tiny.sources(tiny.rows()))
    assert cached.tolist() != tiny.greedy(model, tiny.sources(tiny.rows()), use_cache=False).tolist()


def test_a_soft_prompt_has_twice_the_rows_that_are_used():
    model = PeftModelForSeq2SeqLM(tiny_t5(tiny.VOCABULARY), tiny.soft_config())
    model(**tiny.batch(tiny.rows())).loss.backward()
    assert (tiny.weight(model).grad != 0).any(1).tolist() == [True] * tiny.VIRTUAL + [False] * tiny.VIRTUAL


def test_a_disabled_soft_prompt_still_changes_what_generate_writes():
    base = tiny.BASES["bart"]()
    text = tiny.greedy(base, tiny.sources(tiny.rows()))
    torch.manual_seed(1)
    model = PeftModelForSeq2SeqLM(base, tiny.soft_config(num_transformer_submodules=1))
    tiny.weight(model).data.mul_(5)
    with model.disable_adapter():
        assert tiny.greedy(model, tiny.sources(tiny.rows())).tolist() != text.tolist()


def test_training_never_continues_from_a_saved_prompt(tmp_path):
    """See peft#2256, which found "no good way around this"."""
    model = PeftModelForSeq2SeqLM(tiny_t5(tiny.VOCABULARY), tiny.soft_config())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError):
        PeftModel.from_pretrained(tiny_t5(tiny.VOCABULARY), tmp_path, is_trainable=True)


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_a_left_padded_row_has_another_loss(name):
    torch.manual_seed(1)
    model = PeftModelForSeq2SeqLM(tiny.BASES[name](), tiny.soft_config(num_transformer_submodules=1))
    inputs = tiny.batch(tiny.rows())
    padded = dict(inputs)
    for key in ("input_ids", "attention_mask"):
        lengths = inputs["attention_mask"].sum(1)
        padded[key] = torch.stack([row.roll(len(row) - int(n)) for row, n in zip(inputs[key], lengths, strict=True)])
    assert abs(tiny.summed_loss(model, padded) - tiny.summed_loss(model, inputs)).item() > 1e-3


@pytest.mark.parametrize("name", tiny.SCALED_BASES)
def test_a_prompt_is_not_scaled_when_the_encoder_scales_embeddings(name):
    """Show that a prompt of a text's embeddings then has another loss than the text."""
    base = tiny.SCALED_BASES[name]()
    expected = base(input_ids=torch.cat([tiny.TEXT, tiny.ROW], 1), labels=tiny.LABELS).loss.item()
    model = PeftModelForSeq2SeqLM(base, tiny.soft_config(num_transformer_submodules=1))
    tiny.weight(model).data.copy_(base.get_input_embeddings().weight[tiny.TEXT[0]])
    loss = model(input_ids=tiny.ROW, attention_mask=torch.ones_like(tiny.ROW), labels=tiny.LABELS).loss.item()
    assert loss != pytest.approx(expected, abs=1e-3)
