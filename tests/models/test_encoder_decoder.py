"""Compare prompts of encoder-decoder models with attention computed by hand and with plain PEFT."""

import json
import math
from dataclasses import replace
from itertools import chain

import pytest
import torch
from datasets import Dataset
from helpers.encoder_decoder import (
    BART,
    BASES,
    LABELS,
    ROW,
    SCALED_BASES,
    TEXT,
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
from peft import (
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from safetensors.torch import load_file
from transformers import (
    LongT5Config,
    LongT5ForConditionalGeneration,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.modeling_outputs import BaseModelOutput

from prompt_tuning import Encoder, Template, add_soft_prompt, prompt_config
from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.encoding.target_language import target_language
from prompt_tuning.engine.dispatch import BART_LIKE, T5_LIKE
from prompt_tuning.engine.likelihood import choice_scores
from prompt_tuning.errors import AdapterError, ModelError, RecipeError
from prompt_tuning.models.encoder_decoder import EncoderDecoderPromptModel
from prompt_tuning.models.encoder_decoder_prefix import EncoderDecoderPrefixConfig, load_prompt_config
from prompt_tuning.models.loading import load_tokenizer
from prompt_tuning.studies.rank_likelihoods import log_likelihoods_without_end
from prompt_tuning.templates.languages import language_variables

PLACES = ("encoder", "decoder", "cross")


@pytest.fixture(params=BASES)
def base(request):
    return BASES[request.param]()


@pytest.fixture(params=["t5", "bart"])
def one_of_each(request):
    return BASES[request.param]()


def prefix_config(**changes):
    return EncoderDecoderPrefixConfig(**({"num_virtual_tokens": VIRTUAL} | changes))


def prefixed(base, seed=1, **changes):
    torch.manual_seed(seed)
    return EncoderDecoderPromptModel(base, prefix_config(**changes))


def attentions(base):
    encoder, decoder = base.get_encoder(), base.get_decoder()
    if base.config.model_type in T5_LIKE:
        return {
            "encoder": [block.layer[0].SelfAttention for block in encoder.block],
            "decoder": [block.layer[0].SelfAttention for block in decoder.block],
            "cross": [block.layer[1].EncDecAttention for block in decoder.block],
        }
    return {
        "encoder": [layer.self_attn for layer in encoder.layers],
        "decoder": [layer.self_attn for layer in decoder.layers],
        "cross": [layer.encoder_attn for layer in decoder.layers],
    }


def by_hand(module, with_bias, hidden, memory, visible, prefix):
    """Compute one row's attention `[1, T, H]` from the weights. T5's position bias is in the layer `with_bias`."""
    of_t5 = module.config.model_type in T5_LIKE
    names = ("q", "k", "v", "o") if of_t5 else ("q_proj", "k_proj", "v_proj", "out_proj")
    to_query, to_key, to_value, to_output = (module.get_submodule(name) for name in names)
    heads, size = (module.n_heads, module.key_value_proj_dim) if of_t5 else (module.num_heads, module.head_dim)
    query, key, value = (
        project(states)[0].view(-1, heads, size).transpose(0, 1)
        for project, states in ((to_query, hidden), (to_key, memory), (to_value, memory))
    )
    scores = query @ key.transpose(1, 2) * (1 if of_t5 else size**-0.5)
    if of_t5 and hidden is memory:
        scores = scores + with_bias.compute_bias(hidden.shape[1], memory.shape[1])[0]
    scores = scores.masked_fill(~visible, -math.inf)
    before = query @ prefix[0].transpose(1, 2) * (1 if of_t5 else size**-0.5)
    weights = torch.cat([before, scores], 2).softmax(2)
    mixed = weights @ torch.cat([prefix[1], value], 1)
    return to_output(mixed.transpose(0, 1).reshape(1, hidden.shape[1], -1))


def saved_calls(base, run):
    """Return the arguments and the output of each attention module during `run`."""
    calls = {}

    def record(module, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        memory = kwargs.get("encoder_hidden_states" if base.config.model_type == "umt5" else "key_value_states")
        calls[module] = (hidden, memory, output[0])

    modules = chain.from_iterable(attentions(base).values())
    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    run()
    for handle in handles:
        handle.remove()
    return calls


@torch.no_grad()
def test_every_attention_equals_one_computed_by_hand_from_the_saved_tensor(base):
    model = prefixed(base)
    inputs = batch(rows())
    calls = saved_calls(base, lambda: model(**inputs))
    flat = weight(model)
    start = 0
    for place, modules in attentions(base).items():
        for module in modules:
            heads, size = model.active_peft_config.places[place][1:]
            prefix = flat[:, start : start + 2 * heads * size].view(VIRTUAL, 2, heads, size).permute(1, 2, 0, 3)
            start += 2 * heads * size
            hidden, memory, output = calls[module]
            for row, mask in enumerate(inputs["attention_mask"].bool()):
                length = hidden.shape[1]
                visible = torch.ones(length, length).tril().bool() if place == "decoder" else mask.expand(length, -1)
                row_hidden = hidden[row : row + 1]
                row_memory = row_hidden if memory is None else memory[row : row + 1]
                with_bias = module if base.config.model_type == "umt5" else modules[0]
                expected = by_hand(module, with_bias, row_hidden, row_memory, visible, prefix)
                torch.testing.assert_close(output[row : row + 1], expected, rtol=1e-4, atol=1e-5)
    assert start == flat.shape[1]


@torch.no_grad()
def test_a_cross_prefix_of_encoder_states_equals_a_longer_encoder_output(base):
    model = prefixed(base, prefix_encoder=False, prefix_decoder=False)
    inputs = batch(rows())
    extra = torch.randn(1, VIRTUAL, 32)
    flat = []
    for module in attentions(base)["cross"]:
        projections = (module.k, module.v) if base.config.model_type in T5_LIKE else (module.k_proj, module.v_proj)
        flat += [project(extra)[0] for project in projections]
    weight(model).copy_(torch.cat(flat, 1))
    mask = inputs["attention_mask"]
    encoded = base.get_encoder()(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
    longer = BaseModelOutput(torch.cat([extra.expand(len(mask), -1, -1), encoded], 1))
    expected = base(
        encoder_outputs=longer,
        attention_mask=torch.cat([mask.new_ones(len(mask), VIRTUAL), mask], 1),
        labels=inputs["labels"],
    )
    torch.testing.assert_close(model(**inputs).logits, expected.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("projected", [False, True])
def test_every_slot_of_the_prefix_gets_a_gradient(base, projected):
    model = prefixed(base, prefix_projection=projected)
    written = []

    def keep(module, args, output):
        output.retain_grad()
        written.append(output)

    model.prompt_encoder["default"].transform.register_forward_hook(keep)
    model(**batch(rows())).loss.backward()
    assert len(written) == 1  # The prefix is computed once for all rows.
    gradient = weight(model).grad if not projected else written[0].grad
    assert gradient.shape == (VIRTUAL, sum(2 * n * h * s for n, h, s in model.active_peft_config.places.values()))
    assert (gradient != 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters() if parameter.requires_grad)


def test_a_padded_batch_has_the_loss_and_the_gradient_of_its_single_rows(base):
    model = prefixed(base)
    pairs = rows()
    together = summed_loss(model, batch(pairs))
    (gradient,) = torch.autograd.grad(together, weight(model))
    alone = sum(summed_loss(model, batch([pair])) for pair in pairs)
    (expected,) = torch.autograd.grad(alone, weight(model))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (gradient - expected).norm() / expected.norm() < 1e-4


def test_left_padding_does_not_change_a_row_after_a_prefix(base):
    model = prefixed(base)
    right_padded = batch(rows())
    order = right_padded["attention_mask"].argsort(dim=1, stable=True)
    left_padded = right_padded | {
        name: right_padded[name].gather(1, order) for name in ("input_ids", "attention_mask")
    }
    torch.testing.assert_close(model(**left_padded).loss, model(**right_padded).loss, rtol=1e-5, atol=1e-5)
    padded = [
        {name: inputs[name] for name in ("input_ids", "attention_mask")} for inputs in (left_padded, right_padded)
    ]
    assert greedy(model, padded[0]).tolist() == greedy(model, padded[1]).tolist()


@torch.no_grad()
def test_generation_in_a_padded_batch_is_that_of_single_rows(base):
    model = prefixed(base)
    pairs = rows()
    together = greedy(model, sources(pairs))
    alone = torch.cat([greedy(model, sources([pair])) for pair in pairs])
    assert together.tolist() == alone.tolist()
    assert together.tolist() != greedy(base, sources(pairs)).tolist()


@torch.no_grad()
def test_generation_with_a_cache_equals_a_full_forward_at_every_step(base):
    model = prefixed(base)
    inputs = sources(rows())
    cached = greedy(model, inputs)
    scores = None
    written = cached[:, :1]
    for _ in range(8):
        scores = model(**inputs, decoder_input_ids=written).logits[:, -1]
        new = scores.scatter(1, written, -math.inf)
        written = torch.cat([written, new.argmax(-1, keepdim=True)], 1)
    assert cached.tolist() == written.tolist()
    assert cached.tolist() == greedy(model, inputs, use_cache=False).tolist()
    steps = greedy(model, inputs, return_dict_in_generate=True, output_logits=True).logits
    torch.testing.assert_close(steps[-1], scores, rtol=1e-4, atol=1e-4)
    layers = model.active_peft_config.places
    if layers["encoder"][0] == layers["decoder"][0]:  # transformers gives a static cache the encoder's size.
        static = greedy(model, inputs, cache_implementation="static", disable_compile=True)
        assert cached.tolist() == static.tolist()


def test_beams_with_a_cache_equal_those_without_and_those_of_a_single_row(base):
    model = prefixed(base)
    pairs = rows()
    beams = greedy(model, sources(pairs), num_beams=3)
    assert beams.tolist() == greedy(model, sources(pairs), num_beams=3, use_cache=False).tolist()
    assert beams.tolist() == torch.cat([greedy(model, sources([pair]), num_beams=3) for pair in pairs]).tolist()


@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_a_place_that_is_switched_off_has_no_prefix(one_of_each, place):
    off = {f"prefix_{other}": other == place for other in PLACES}
    model = prefixed(one_of_each, **off)
    assert list(model.active_peft_config.places) == [place]
    inputs = batch(rows())
    changed = model(**inputs)
    plain = one_of_each(**inputs)
    same_encoder = torch.equal(changed.encoder_last_hidden_state, plain.encoder_last_hidden_state)
    assert same_encoder == (place != "encoder")
    assert not torch.allclose(changed.logits, plain.logits)


def test_a_prefix_that_is_switched_off_everywhere_is_refused():
    with pytest.raises(AdapterError, match=r"no place is switched on\. Set prefix_encoder"):
        prefix_config(prefix_encoder=False, prefix_decoder=False, prefix_cross=False)
    with pytest.raises(AdapterError, match="num_virtual_tokens is 0"):
        prefix_config(num_virtual_tokens=0)


@torch.no_grad()
def test_the_base_model_is_unchanged(base):
    inputs = batch(rows())
    logits = base(**inputs).logits
    text = greedy(base, sources(rows()))
    model = prefixed(base)
    model(**inputs)
    greedy(model, sources(rows()))
    assert torch.equal(base(**inputs).logits, logits)
    assert torch.equal(greedy(base, sources(rows())), text)


@pytest.mark.parametrize("config", [prefix_config, soft_config, lambda: soft_config(PromptEncoderConfig)])
@torch.no_grad()
def test_a_disabled_prompt_is_off_in_forward_and_in_generate(one_of_each, config):
    inputs = batch(rows())
    logits = one_of_each(**inputs).logits
    text = greedy(one_of_each, sources(rows()))
    torch.manual_seed(1)
    model = EncoderDecoderPromptModel(one_of_each, config())
    weight(model).mul_(5)
    with model.disable_adapter():
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(greedy(model, sources(rows())), text)
    assert not torch.allclose(model(**inputs).logits, logits)
    assert not torch.equal(greedy(model, sources(rows())), text)
    assert torch.equal(greedy(one_of_each, sources(rows())), text)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig])
def test_every_row_of_a_soft_prompt_is_trained_and_padding_changes_no_result(one_of_each, kind):
    torch.manual_seed(1)
    model = EncoderDecoderPromptModel(one_of_each, soft_config(kind))
    assert weight(model).shape == (VIRTUAL, 32)
    pairs = rows()
    together = summed_loss(model, batch(pairs))
    together.backward()
    assert (weight(model).grad != 0).any(1).all()
    alone = sum(summed_loss(model, batch([pair])) for pair in pairs)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    expected = torch.cat([greedy(model, sources([pair])) for pair in pairs])
    assert greedy(model, sources(pairs)).tolist() == expected.tolist()
    right_padded = batch(pairs)
    order = right_padded["attention_mask"].argsort(dim=1, stable=True)  # T5 also counts the positions of padding.
    left_padded = right_padded | {
        name: right_padded[name].gather(1, order) for name in ("input_ids", "attention_mask")
    }
    torch.testing.assert_close(summed_loss(model, left_padded), alone, rtol=1e-5, atol=1e-5)
    padded = {name: left_padded[name] for name in ("input_ids", "attention_mask")}
    assert greedy(model, padded).tolist() == expected.tolist()


def test_prompts_that_do_not_fit_these_models_are_refused(one_of_each):
    with pytest.raises(AdapterError, match="num_transformer_submodules is 2"):
        EncoderDecoderPromptModel(one_of_each, soft_config(num_transformer_submodules=2))
    with pytest.raises(AdapterError, match=r"a PrefixTuningConfig .* EncoderDecoderPrefixConfig"):
        EncoderDecoderPromptModel(one_of_each, soft_config(PrefixTuningConfig))


def test_an_architecture_without_a_prefix_is_refused_by_name():
    small = {"d_kv": 8, "num_heads": 2, "d_model": 16, "num_layers": 1, "vocab_size": 9, "d_ff": 8}
    longer = LongT5ForConditionalGeneration(LongT5Config(**small))
    with pytest.raises(ModelError, match=f"longt5: its attention .* or one of {', '.join(T5_LIKE + BART_LIKE)}"):
        EncoderDecoderPromptModel(longer, prefix_config())
    eager = tiny_t5(VOCABULARY)
    eager.set_attn_implementation("eager")
    with pytest.raises(ModelError, match=r'runs eager attention.*"sdpa"'):
        EncoderDecoderPromptModel(eager, prefix_config())


@pytest.mark.parametrize("config", [prefix_config, lambda: prefix_config(prefix_projection=True, prefix_cross=False)])
@torch.no_grad()
def test_a_saved_prefix_predicts_the_same_and_holds_only_keys_and_values(base, tmp_path, config):
    torch.manual_seed(1)
    model = EncoderDecoderPromptModel(base, config())
    inputs = batch(rows())
    logits = model(**inputs).logits
    text = greedy(model, sources(rows()))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    width = sum(2 * math.prod(shape) for shape in model.active_peft_config.places.values())
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == {"prompt_embeddings": (VIRTUAL, width)}
    written = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (written["peft_type"], written["prefix_format"]) == (
        "ENCODER_DECODER_PREFIX",
        "prompt_tuning/encoder_decoder_prefix/1",
    )
    loaded = EncoderDecoderPromptModel.from_pretrained(base, tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(loaded(**inputs).logits, logits)
    assert torch.equal(greedy(loaded, sources(rows())), text)
    loaded.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert torch.equal(again["prompt_embeddings"], saved["prompt_embeddings"])


@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig])
@torch.no_grad()
def test_a_saved_soft_prompt_predicts_the_same_here_and_in_plain_peft(one_of_each, tmp_path, kind):
    torch.manual_seed(1)
    model = EncoderDecoderPromptModel(one_of_each, soft_config(kind)).eval()
    inputs = batch(rows())
    logits = model(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = EncoderDecoderPromptModel.from_pretrained(one_of_each, tmp_path)
    assert type(loaded) is EncoderDecoderPromptModel
    torch.testing.assert_close(loaded(**inputs).logits, logits)
    torch.testing.assert_close(PeftModel.from_pretrained(one_of_each, tmp_path)(**inputs).logits, logits)
    model.load_adapter(tmp_path, "default")  # Trainer loads the best checkpoint in the same way.
    torch.testing.assert_close(model(**inputs).logits, logits)


def test_plain_peft_refuses_a_saved_prefix_by_its_type(one_of_each, tmp_path):
    prefixed(one_of_each, prefix_encoder=False, prefix_cross=False).save_pretrained(tmp_path)
    for load in (
        lambda: PeftModel.from_pretrained(one_of_each, tmp_path),
        lambda: PeftConfig.from_pretrained(tmp_path),
    ):
        with pytest.raises(KeyError, match="ENCODER_DECODER_PREFIX"):
            load()
    assert isinstance(load_prompt_config(tmp_path), EncoderDecoderPrefixConfig)


def test_a_prefix_is_refused_by_a_model_of_another_shape_and_by_another_format(tmp_path):
    prefixed(BASES["t5"]()).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"\[2, 4, 8\].*T5ForConditionalGeneration has .*\[2, 5, 6\]"):
        EncoderDecoderPromptModel.from_pretrained(BASES["flan-t5"](), tmp_path)
    wider = prefixed(BASES["t5"](), num_virtual_tokens=5)
    with pytest.raises(AdapterError, match=r"has the shape \[3, 384\], .* says \[5, 384\]"):
        wider.load_adapter(tmp_path, "default")
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text(encoding="utf-8").replace("prefix/1", "prefix/2"), encoding="utf-8")
    with pytest.raises(AdapterError, match="prefix_format is prompt_tuning/encoder_decoder_prefix/2, expected"):
        load_prompt_config(tmp_path)


def test_training_continues_from_a_saved_prefix(one_of_each, tmp_path):
    model = prefixed(one_of_each, prefix_projection=True)
    inputs = batch(rows())
    loss = model(**inputs).loss.item()
    model.save_pretrained(tmp_path)
    continued = EncoderDecoderPromptModel.from_pretrained(one_of_each, tmp_path, is_trainable=True)
    resumed = continued(**inputs).loss
    resumed.backward()
    assert resumed.item() == pytest.approx(loss, abs=1e-6)
    assert (weight(continued).grad != 0).all()
    in_place = prefixed(one_of_each, seed=2)
    in_place.load_adapter(tmp_path, "default", is_trainable=True)
    assert in_place(**inputs).loss.item() == pytest.approx(loss, abs=1e-6)


def test_a_projected_prefix_is_restored_in_place_but_not_trained_further(one_of_each, tmp_path):
    model = prefixed(one_of_each, prefix_projection=True)
    inputs = batch(rows())
    loss = model(**inputs).loss.item()
    model.save_pretrained(tmp_path)
    other = prefixed(one_of_each, seed=2, prefix_projection=True)
    with pytest.raises(AdapterError, match="Training cannot resume"):
        other.load_adapter(tmp_path, "default", is_trainable=True)
    other.load_adapter(tmp_path, "default")
    assert other(**inputs).loss.item() == pytest.approx(loss, abs=1e-6)


def test_several_prefixes_can_be_loaded_and_switched(one_of_each, tmp_path):
    inputs = batch(rows())
    losses = {}
    for seed, name in enumerate(("one", "two")):
        model = prefixed(one_of_each, seed=seed)
        losses[name] = model(**inputs).loss.item()
        model.save_pretrained(tmp_path / name)
    model = EncoderDecoderPromptModel.from_pretrained(one_of_each, tmp_path / "one", "one")
    model.load_adapter(tmp_path / "two", "two")
    for name in ("two", "one"):
        model.set_adapter(name)
        assert model(**inputs).loss.item() == pytest.approx(losses[name], abs=1e-6)
    model.delete_adapter("two")
    assert list(model.peft_config) == ["one"]


@pytest.mark.parametrize("projected", [False, True])
def test_activation_checkpointing_changes_no_gradient(base, projected):
    model = prefixed(base, prefix_projection=projected)
    inputs = batch(rows())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    expected = torch.autograd.grad(model(**inputs).loss, parameters)
    base.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    gradients = torch.autograd.grad(model(**inputs, use_cache=False).loss, parameters)
    for one, other in zip(gradients, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
    prefixed(base)(**inputs)  # Plain PEFT refuses a prefix here, because the model checkpoints activations.


def test_accumulated_gradients_are_those_of_one_batch(one_of_each):
    model = prefixed(one_of_each, prefix_projection=True)
    pairs = rows()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(summed_loss(model, batch(pairs)), parameters)
    for half in (pairs[:2], pairs[2:]):
        summed_loss(model, batch(half)).backward()
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [prefix_config, lambda: prefix_config(prefix_projection=True), soft_config])
def test_prompts_stay_in_float32_with_a_bfloat16_model(one_of_each, config):
    model = EncoderDecoderPromptModel(one_of_each.to(torch.bfloat16), config())
    inputs = batch(rows())
    model(**inputs).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in trained)
    greedy(model, sources(rows()))


def test_a_step_under_bfloat16_autocast_is_near_one_in_float32(one_of_each):
    model = prefixed(one_of_each, prefix_projection=True)
    inputs = batch(rows())
    plain = model(**inputs).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
        greedy(model, sources(rows()))
    loss.backward()
    assert weight(model).grad.isfinite().all()
    assert loss.item() == pytest.approx(plain.item(), rel=0.02)


@pytest.mark.parametrize("projected", [False, True])
def test_a_prefix_starts_at_the_scale_of_the_models_own_keys_and_values(base, projected):
    model = prefixed(base, num_virtual_tokens=64, prefix_projection=projected)
    ids = torch.arange(3, 35)[None]
    calls = saved_calls(base, lambda: base(input_ids=ids, decoder_input_ids=ids))
    slots = iter(model.prompt_encoder["default"].slots())
    names = ("k", "v") if base.config.model_type in T5_LIKE else ("k_proj", "v_proj")
    for module in chain.from_iterable(attentions(base).values()):
        hidden, memory, _ = calls[module]
        for name in names:
            deviation = module.get_submodule(name)(hidden if memory is None else memory).std()
            assert 0.5 < next(slots).std() / deviation < 2
    zero = prefixed(base, init_weights="zero", prefix_projection=projected)
    assert not any(slot.any() for slot in zero.prompt_encoder["default"].slots())


@pytest.mark.parametrize("steps_before", [2, 4])
def test_trainer_saves_loads_the_best_and_resumes_to_the_same_prefix(one_of_each, tmp_path, steps_before):
    def trainer():
        arguments = Seq2SeqTrainingArguments(
            tmp_path, max_steps=6, save_steps=2, eval_steps=2, save_strategy="steps", eval_strategy="steps",
            per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.05, use_cpu=True,
            load_best_model_at_end=True, report_to=[], disable_tqdm=True, remove_unused_columns=False,
            predict_with_generate=True, generation_max_length=4, logging_strategy="no", activation_checkpointing=True,
        )  # fmt: skip
        return Seq2SeqTrainer(
            prefixed(one_of_each), arguments, train_dataset=rows(8), eval_dataset=rows(4), data_collator=batch
        )

    whole = trainer()
    whole.train()
    best = whole.evaluate()["eval_loss"]
    assert best == pytest.approx(whole.state.best_metric, abs=1e-6)
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{steps_before}"))
    torch.testing.assert_close(weight(resumed.model), weight(whole.model))


def test_a_few_steps_of_training_lower_the_loss(one_of_each):
    model = prefixed(one_of_each)
    inputs = batch(rows())
    optimizer = torch.optim.AdamW([weight(model)], lr=0.05)
    first = model(**inputs).loss
    for _ in range(15):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.9 * first.item()


@pytest.mark.parametrize("name", SCALED_BASES)
def test_a_prompt_of_a_texts_embeddings_equals_the_text_when_the_encoder_scales_embeddings(name):
    base = SCALED_BASES[name]()
    whole = torch.cat([TEXT, ROW], 1)
    inputs = {"input_ids": ROW, "attention_mask": torch.ones_like(ROW)}
    settings = {"max_new_tokens": 6, "do_sample": False}
    expected = base(input_ids=whole, labels=LABELS).loss
    written = base.generate(input_ids=whole, **settings)
    embeddings = base.get_input_embeddings().weight[TEXT[0]].clone()
    model = add_soft_prompt(base, prompt_config(base, 3), embeddings)
    assert model(**inputs, labels=LABELS).loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert model.generate(**inputs, **settings).tolist() == written.tolist()
    with model.disable_adapter():
        alone = base(input_ids=ROW, labels=LABELS).loss.item()
        assert model(**inputs, labels=LABELS).loss.item() == pytest.approx(alone, abs=1e-5)


PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{letter}", -1.0) for letter in "abcdef")]


@pytest.mark.parametrize(
    ("tokenizer_class", "codes", "source", "target", "setting"),
    [
        (MBartTokenizer, ("fr_XX", "ro_RO"), "▁a ▁b </s> fr_XX", "▁c </s> ro_RO", "decoder_start_token_id"),
        (MBart50Tokenizer, ("fr_XX", "ro_RO"), "fr_XX ▁a ▁b </s>", "ro_RO ▁c </s>", "forced_bos_token_id"),
        (NllbTokenizer, ("fra_Latn", "deu_Latn"), "fra_Latn ▁a ▁b </s>", "deu_Latn ▁c </s>", "forced_bos_token_id"),
    ],
)
def test_a_tokenizer_that_marks_languages_marks_the_recipes_languages(
    tokenizer_class, codes, source, target, setting, tmp_path
):
    arguments = {"vocab": PIECES}
    if tokenizer_class is NllbTokenizer:  # NLLB's tokenizer also needs merges.
        merges = [("▁", letter) for letter in "abcdef"]
        names = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdef", *map("".join, merges)]
        arguments = {"vocab": {name: number for number, name in enumerate(names)}, "merges": merges}
    tokenizer_class(**arguments).save_pretrained(tmp_path)
    MBartConfig(**BART).save_pretrained(tmp_path)
    model = ModelArguments(model_name_or_path=str(tmp_path))
    tokenizer = load_tokenizer(model, *codes)
    template = Template("{{ translation[source_lang] }}", "{{ translation[target_lang] }}")
    encoder = Encoder(template, tokenizer, True, languages=language_variables(*codes))
    row = encoder.row({"translation": dict(zip(codes, ("a b", "c"), strict=True))})
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == source.split()
    assert tokenizer.convert_ids_to_tokens(row["labels"]) == target.split()
    assert target_language(tokenizer) == {setting: tokenizer.convert_tokens_to_ids(codes[1])}
    with pytest.raises(RecipeError, match="target_lang ro: the tokenizer marks languages and does not know it"):
        load_tokenizer(model, codes[0], "ro")
    closed = replace(encoder, template=replace(template, answer_choices="c ||| d"))
    _, choices = closed.choices({"translation": dict.fromkeys(codes, "a")}, "a", row["input_ids"])
    assert tokenizer.eos_token_id not in choices[0] and tokenizer.convert_ids_to_tokens(choices[0])[-1] == "▁c"
    marks = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    base = seeded(MBartForConditionalGeneration, MBartConfig(**(BART | marks)))
    logits = base(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).logits[0]
    expected = sum(logits.log_softmax(-1)[place, token].item() for place, token in enumerate(choices[0]))
    scores = choice_scores(base, tokenizer, [row["input_ids"]], [["c", "d"]], [choices])
    assert scores[0][0] == pytest.approx(expected, abs=1e-4)
    # The ranking has no end-of-sequence token either.
    ranked = log_likelihoods_without_end(base, [(Dataset.from_list([row]), 0)])
    assert ranked[0] == pytest.approx(expected, abs=1e-4)
