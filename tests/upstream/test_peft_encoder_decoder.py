"""What PEFT 0.21.2 gets wrong for prompts of encoder-decoder models; each test fails as soon as PEFT mends it.

Where a test names an issue of github.com/huggingface/peft, its users reported it there.
"""

import pytest
import torch
from helpers.encoder_decoder import (
    BART,
    BASES,
    T5,
    VIRTUAL,
    VOCABULARY,
    batch,
    greedy,
    rows,
    seeded,
    soft_config,
    sources,
    summed_loss,
    weight,
)
from helpers.models import tiny_t5
from peft import PeftModel, PeftModelForSeq2SeqLM, PrefixTuningConfig
from transformers import (
    MarianConfig,
    MarianMTModel,
    PegasusConfig,
    PegasusForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)


def plain_prefix(base):
    torch.manual_seed(1)
    return PeftModelForSeq2SeqLM(base, soft_config(PrefixTuningConfig))


def test_two_decoder_layers_have_one_prefix_and_half_of_the_slots_no_gradient():
    model = plain_prefix(seeded(T5ForConditionalGeneration, T5Config(**(T5 | {"num_layers": 6}))))
    layers = model.get_prompt(1).self_attention_cache.layers
    same = [(i, j) for i in range(6) for j in range(i) if torch.equal(layers[i].keys, layers[j].keys)]
    assert sorted(same) == [(3, 0), (4, 1), (5, 2)]
    model(**batch(rows())).loss.backward()
    by_slot = weight(model).grad.view(VIRTUAL, 12, 32).abs().sum((0, 2)) > 0
    assert by_slot.tolist() == [True, True, False, False] * 3


@pytest.mark.parametrize("name", ["flan-t5", "mt5", "t5, 2 and 4 layers", "bart, 2 and 4 layers"])
def test_other_geometries_and_shallower_encoders_take_no_prefix(name):
    with pytest.raises((RuntimeError, IndexError)):
        plain_prefix(BASES[name]())(**batch(rows()))


@pytest.mark.filterwarnings("ignore:Both `past_key_values` and `cache` are set:FutureWarning")
@torch.no_grad()
def test_a_prefix_writes_other_text_without_a_cache():
    model = plain_prefix(BASES["bart"]())
    cached = greedy(model, sources(rows()))
    assert cached.tolist() != greedy(model, sources(rows()), use_cache=False).tolist()


def test_a_soft_prompt_has_twice_the_rows_that_are_used():
    model = PeftModelForSeq2SeqLM(tiny_t5(VOCABULARY), soft_config())
    model(**batch(rows())).loss.backward()
    assert (weight(model).grad != 0).any(1).tolist() == [True] * VIRTUAL + [False] * VIRTUAL


def test_a_disabled_soft_prompt_still_changes_what_generate_writes():
    base = BASES["bart"]()
    text = greedy(base, sources(rows()))
    torch.manual_seed(1)
    model = PeftModelForSeq2SeqLM(base, soft_config(num_transformer_submodules=1))
    weight(model).data.mul_(5)
    with model.disable_adapter():
        assert greedy(model, sources(rows())).tolist() != text.tolist()


def test_training_never_continues_from_a_saved_prompt(tmp_path):
    """peft#2256: "no good way around this"."""
    model = PeftModelForSeq2SeqLM(tiny_t5(VOCABULARY), soft_config())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError):
        PeftModel.from_pretrained(tiny_t5(VOCABULARY), tmp_path, is_trainable=True)


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_a_left_padded_row_has_another_loss(name):
    torch.manual_seed(1)
    model = PeftModelForSeq2SeqLM(BASES[name](), soft_config(num_transformer_submodules=1))
    inputs = batch(rows())
    padded = dict(inputs)
    for key in ("input_ids", "attention_mask"):
        lengths = inputs["attention_mask"].sum(1)
        padded[key] = torch.stack([row.roll(len(row) - int(n)) for row, n in zip(inputs[key], lengths, strict=True)])
    assert abs(summed_loss(model, padded) - summed_loss(model, inputs)).item() > 1e-3


@pytest.mark.parametrize("kind", [(MarianMTModel, MarianConfig), (PegasusForConditionalGeneration, PegasusConfig)])
def test_a_prompt_is_not_scaled_where_the_encoder_scales_what_it_looks_up(kind):
    """A prompt of a text's embeddings is then not that text."""
    model_class, config_class = kind
    base = seeded(model_class, config_class(**(BART | {"scale_embedding": True})))
    text, row, labels = torch.tensor([[11, 12, 13]]), torch.tensor([[5, 9, 20, 31, 1]]), torch.tensor([[7, 8, 1]])
    expected = base(input_ids=torch.cat([text, row], 1), labels=labels).loss.item()
    model = PeftModelForSeq2SeqLM(base, soft_config(num_transformer_submodules=1))
    weight(model).data.copy_(base.get_input_embeddings().weight[text[0]])
    loss = model(input_ids=row, attention_mask=torch.ones_like(row), labels=labels).loss.item()
    assert loss != pytest.approx(expected, abs=1e-3)
