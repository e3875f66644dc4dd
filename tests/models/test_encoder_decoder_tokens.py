"""Hold trained tokens of encoder-decoders to a plain forward of the base model that is written here."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from helpers.encoder_decoder import (
    BART,
    BASES,
    SCALED,
    SCALED_BASES,
    VIRTUAL,
    VOCABULARY,
    batch,
    greedy,
    seeded,
    sources,
)
from peft import PeftModel
from transformers import (
    LongT5Config,
    LongT5ForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
)

from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.engine.dispatch import ENCODER_DECODERS
from prompt_tuning.engine.likelihood import log_likelihoods
from prompt_tuning.engine.trained_tokens import layer_vectors_of
from prompt_tuning.errors import AdapterError, ModelError
from prompt_tuning.models.encoder_decoder import EncoderDecoderPromptModel
from prompt_tuning.models.initialization import layer_scales
from prompt_tuning.models.prompts import add_soft_prompt, load_adapter, prompt_config

ALL_BASES = BASES | {f"{name}, scaled": build for name, build in SCALED_BASES.items()}
ALL_BASES["mbart, scaled"] = lambda: seeded(MBartForConditionalGeneration, MBartConfig(**SCALED))
ALL_BASES["m2m_100"] = lambda: seeded(M2M100ForConditionalGeneration, M2M100Config(**BART))
ALL_BASES["m2m_100, scaled"] = lambda: seeded(M2M100ForConditionalGeneration, M2M100Config(**SCALED))

STARTS = [30, 31, 32, 33]
OPENS, *ENDING = range(VOCABULARY, VOCABULARY + 4)  # The trained ids: one near the start, and three that end a source.
SOURCES = [[20, 31, 4], [20], [20, 12, 13, 14, 15, 16]]
ANSWERS = [[55, 66, 3, 1], [21, 1], [17, 18, 19, 21, 1]]
ROWS = [
    (torch.tensor([7, OPENS, *source, *ENDING, 1]), torch.tensor(answer))
    for source, answer in zip(SOURCES, ANSWERS, strict=True)
]


def added(base, length=VIRTUAL, *, layer_vectors=True, starts=STARTS, method="prompt_tuning", initial=None):
    args = PromptArguments(method=method, layer_vectors=layer_vectors)
    return add_soft_prompt(base, prompt_config(base, length, args, text_ids=starts), initial)


def trained(base, *args, seed=1, **settings):
    """Return a model whose prompt, text, vectors and units have moved from their start."""
    torch.manual_seed(seed)
    model = added(base, *args, **settings)
    for parameter in weights(model):
        torch.nn.init.normal_(parameter, std=0.3)
    for unit in model.prompt_encoder["default"].trained_tokens.buffers():
        unit.uniform_(0.5, 2)
    return model


def weights(model, name="default"):
    return [parameter for parameter in model.prompt_encoder[name].parameters() if parameter.numel()]


def part(model, name="default"):
    return model.prompt_encoder[name].trained_tokens


def layers(stack):
    return stack.block if "t5" in stack.config.model_type else stack.layers


def added_at(vectors, places):
    """Return a hook that adds vectors `[N, H]` at N places of a layer's input."""

    def add(module, args):
        change = torch.zeros_like(args[0]).index_add(1, places, vectors.to(args[0].dtype).expand(len(args[0]), -1, -1))
        return (args[0] + change, *args[1:])

    return add


@contextmanager
def plain(model, source, name="default"):
    """Yield the arguments for the base model of one source, with hooks and embeddings that are made here.

    The hooks take the first token of a decoder's input for that of its text, so that it must run without a cache.
    """
    base, tokens, encoder = model.base_model, part(model, name), model.prompt_encoder[name]
    is_text = source >= VOCABULARY
    embeds = base.get_input_embeddings()(source.masked_fill(is_text, 0)).clone()
    embeds[is_text] = tokens.text_embeddings[source[is_text] - VOCABULARY].to(embeds.dtype)
    is_prefix = model.peft_config[name].peft_type == "PREFIX_TUNING"
    length = 0 if is_prefix else model.peft_config[name].num_virtual_tokens
    prompt = encoder.embedding.weight[:length].to(embeds.dtype) if length else embeds[:0]
    embeds = torch.cat([prompt, embeds])
    if base.config.model_type in ("marian", "pegasus"):  # The others scale what they look up.
        embeds = embeds * base.get_encoder().embed_scale
    hooks = []
    if tokens.layer_vectors is not None:
        places = torch.cat([torch.arange(length), length + is_text.nonzero()[:, 0]])
        columns = torch.cat([torch.arange(length), length + source[is_text] - VOCABULARY])
        for number, layer in enumerate(layers(base.get_encoder())):
            vectors = tokens.layer_vectors[number][columns] * tokens.layer_scales[number]
            hooks.append(layer.register_forward_pre_hook(added_at(vectors, places)))
        for number, layer in enumerate(layers(base.get_decoder())):
            vectors = tokens.decoder_vectors[number] * tokens.decoder_scales[number]
            hooks.append(layer.register_forward_pre_hook(added_at(vectors, torch.tensor([0]))))
    try:
        with model._pass_prefix() if is_prefix else nullcontext():
            yield {"inputs_embeds": embeds[None], "attention_mask": torch.ones(1, len(embeds), dtype=torch.long)}
    finally:
        for hook in hooks:
            hook.remove()


def plain_logits(model, source, name="default", **further):
    with plain(model, source, name) as inputs:
        return model.base_model(**inputs, **further, use_cache=False).logits[0]


def plain_loss(model, name="default"):
    logits = torch.cat([plain_logits(model, source, name, labels=labels[None]) for source, labels in ROWS])
    return F.cross_entropy(logits, torch.cat([labels for _, labels in ROWS]))


def plain_texts(model, name="default", **settings):
    texts = []
    for source, _ in ROWS:
        with plain(model, source, name) as inputs:
            texts += greedy(model.base_model, inputs, use_cache=False, **settings).tolist()
    return texts


def gradient(loss, model):
    return torch.cat([tensor.flatten() for tensor in torch.autograd.grad(loss, weights(model))])


def left_padded(inputs):
    order = inputs["attention_mask"].argsort(dim=1, stable=True)
    return inputs | {name: inputs[name].gather(1, order) for name in ("input_ids", "attention_mask")}


def check_against_plain_forward(model):
    """Check loss, gradient, and the greedy text of rows in a batch and alone."""
    expected = plain_loss(model)
    expected_gradient = gradient(expected, model)
    assert all(tensor.any() for tensor in torch.autograd.grad(plain_loss(model), weights(model)))
    for inputs in (batch(ROWS), left_padded(batch(ROWS))):
        loss = model(**inputs).loss
        assert abs(loss.item() - expected.item()) < 1e-5
        assert (gradient(loss, model) - expected_gradient).norm() / expected_gradient.norm() < 1e-4
    texts = plain_texts(model)
    assert greedy(model, sources(ROWS)).tolist() == texts
    assert greedy(model, left_padded(sources(ROWS)), use_cache=False).tolist() == texts
    assert torch.cat([greedy(model, sources([row])) for row in ROWS]).tolist() == texts


@pytest.mark.parametrize("name", ALL_BASES)
def test_layer_vectors_have_the_loss_gradient_and_text_of_a_plain_forward(name):
    check_against_plain_forward(trained(ALL_BASES[name]()))


def test_each_architecture_that_takes_trained_tokens_is_tested():
    assert {name.split(",")[0].removeprefix("flan-") for name in ALL_BASES} == set(ENCODER_DECODERS)


@pytest.mark.parametrize("name", ["t5", "marian, scaled"])
@pytest.mark.parametrize(
    "settings",
    [
        {"length": 0},
        {"length": 0, "layer_vectors": False},
        {"layer_vectors": False},
        {"starts": ()},
        {"method": "prefix_tuning"},
    ],
)
def test_other_trained_tokens_have_the_loss_gradient_and_text_of_a_plain_forward(name, settings, monkeypatch):
    if "starts" in settings:
        ordinary_rows = [(source[source < VOCABULARY], labels) for source, labels in ROWS]
        monkeypatch.setitem(globals(), "ROWS", ordinary_rows)
    check_against_plain_forward(trained(ALL_BASES[name](), **settings))


def ordinary(source):
    return torch.tensor([STARTS[id - VOCABULARY] if id >= VOCABULARY else id for id in source.tolist()])


@pytest.mark.parametrize("name", ALL_BASES)
@torch.no_grad()
def test_untrained_it_is_the_hard_prompt_to_the_bit(name):
    base = ALL_BASES[name]()
    opening = torch.tensor([8, 9, 10])
    start = base.get_input_embeddings()(opening)
    hard = batch([(torch.cat([opening, ordinary(source)]), labels) for source, labels in ROWS])
    expected = base(**hard).logits
    reads_source = {"encoder_repetition_penalty": 1.5}
    texts = [greedy(base, {"input_ids": ordinary(source)[None]}, **reads_source).tolist() for source, _ in ROWS]
    alone = added(base, 0)
    assert greedy(alone, sources(ROWS), **reads_source).tolist() == [text for row in texts for text in row]
    model = added(alone.unload(), initial=start)
    assert torch.equal(model(**batch(ROWS)).logits, expected)


@pytest.mark.parametrize("name", ["t5", "bart", "m2m_100, scaled"])
def test_beams_and_likelihoods_are_those_of_a_plain_forward(name):
    model = trained(ALL_BASES[name]())
    assert greedy(model, sources(ROWS), num_beams=3).tolist() == plain_texts(model, num_beams=3)
    choices = [[[5, 6], [5, 7], [8]], [[9, 10, 11]], [[1], [2]]]
    scores = log_likelihoods(model, [source.tolist() for source, _ in ROWS], choices)
    for (source, _), of_row, row_scores in zip(ROWS, choices, scores, strict=True):
        for choice, score in zip(of_row, row_scores, strict=True):
            logits = plain_logits(model, source, labels=torch.tensor([choice])).log_softmax(-1)
            assert score == pytest.approx(logits[torch.arange(len(choice)), choice].sum().item(), abs=1e-4)


@pytest.mark.parametrize("name", ["t5", "umt5", "bart"])
def test_layers_that_run_again_in_the_backward_pass_add_the_same_vectors(name):
    model = trained(ALL_BASES[name]())
    expected = gradient(plain_loss(model), model)
    model.base_model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    loss = model(**batch(ROWS), use_cache=False).loss
    model(**batch(ROWS[:1]), use_cache=False)  # Another batch, before the backward pass of the first.
    assert (gradient(loss, model) - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_in_bfloat16_a_row_in_a_batch_is_near_what_it_is_alone(name):
    model = trained(ALL_BASES[name]().to(torch.bfloat16))
    assert all(weight.dtype == torch.float32 for weight in weights(model))
    output = model(**batch(ROWS))
    for (source, labels), logits in zip(ROWS, output.logits, strict=True):
        alone = plain_logits(model, source, labels=labels[None]).float()
        assert (logits[: len(labels)].float() - alone).abs().max() < 0.15 * alone.std()
    output.loss.backward()
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in weights(model))


def test_adapters_are_switched_with_their_own_tokens_and_off():
    model = trained(ALL_BASES["bart"]())
    hard = [(ordinary(source), labels) for source, labels in ROWS]
    plain_base = greedy(model.base_model, sources(hard)).tolist()
    model.add_adapter("other", prompt_config(model.base_model, 0, text_ids=STARTS[::-1]))
    for parameter in weights(model, "other"):
        torch.nn.init.normal_(parameter, std=0.3)
    texts = {name: plain_texts(model, name) for name in ("default", "other")}
    assert texts["default"] != texts["other"]
    for name in ("other", "default"):
        model.set_adapter(name)
        assert model(**batch(ROWS)).loss.item() == pytest.approx(plain_loss(model, name).item(), abs=1e-5)
        assert greedy(model, sources(ROWS)).tolist() == texts[name]
    with model.disable_adapter():
        assert greedy(model, sources(hard)).tolist() == plain_base
    assert greedy(model.base_model, sources(hard)).tolist() == plain_base


def test_threads_that_generate_at_once_read_each_their_own_rows():
    model = trained(ALL_BASES["t5"]())
    batches = [ROWS, ROWS[::-1], ROWS[:1], ROWS[1:]] * 2
    expected = [greedy(model, sources(rows)).tolist() for rows in batches]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda rows: greedy(model, sources(rows)).tolist(), batches)) == expected


@pytest.mark.parametrize("architecture", ["t5", "bart"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_saved_and_loaded_it_predicts_the_same_and_plain_peft_refuses_it(architecture, method, tmp_path):
    build = ALL_BASES[f"{architecture}, 2 and 4 layers"]
    model = trained(build(), method=method)
    model.peft_config["default"].trained_text = {"mode": "ending"}
    expected = greedy(model, sources(ROWS))
    model.save_pretrained(tmp_path)
    with pytest.raises(KeyError, match=r"TRAINED_TOKENS|ENCODER_DECODER_PREFIX"):
        PeftModel.from_pretrained(build(), tmp_path)
    for loaded in (
        load_adapter(build(), tmp_path),
        load_adapter(build(), tmp_path, is_trainable=True),
        EncoderDecoderPromptModel.from_pretrained(build(), tmp_path),
    ):
        assert torch.equal(greedy(loaded, sources(ROWS)), expected)
        assert loaded.peft_config["default"].trained_text == {"mode": "ending"}
    base = loaded.unload()
    hard = sources([(ordinary(source), labels) for source, labels in ROWS])
    assert torch.equal(greedy(base, hard), greedy(build(), hard))
    if method == "prompt_tuning":
        with pytest.raises(AdapterError, match=r"decoder_vectors has the shape \[4, 1, 32\], .* takes \[2, 1, 32\]"):
            load_adapter(ALL_BASES[architecture](), tmp_path)


def test_scales_are_the_median_size_of_each_layers_input_without_the_first_token():
    base = ALL_BASES["bart, 2 and 4 layers"]()
    rows, targets = [[5, 6, 7], [8, 9, 10, 11]], [[20, 1], [21, 22, 23, 1]]
    outputs = []
    for row, target in zip(rows, targets, strict=True):
        settings = {"labels": torch.tensor([target]), "output_hidden_states": True}
        outputs.append(base(input_ids=torch.tensor([row]), **settings))
    states = [(*out.encoder_hidden_states[:-1], *out.decoder_hidden_states[:-1]) for out in outputs]
    scales = layer_scales(base, rows, targets)
    assert len(scales) == 6
    for layer, scale in enumerate(scales):
        sizes = torch.cat([hidden[layer][0, 1:].square().mean(-1).sqrt() for hidden in states])
        assert scale == pytest.approx(sizes.median().item())
    config = prompt_config(base, VIRTUAL, PromptArguments(layer_vectors=True))
    model = add_soft_prompt(base, config, layer_scales=scales)
    tokens = part(model)
    assert [len(vectors) for vectors in layer_vectors_of(model)] == [2, 4]  # Both have the rate of layer vectors.
    assert torch.equal(torch.cat([tokens.layer_scales, tokens.decoder_scales]), scales)


def test_other_architectures_are_refused_by_name():
    small = {"d_kv": 8, "num_heads": 2, "d_model": 16, "num_layers": 1, "vocab_size": VOCABULARY, "d_ff": 8}
    base = LongT5ForConditionalGeneration(LongT5Config(**small))
    with pytest.raises(ModelError, match="layer_vectors: longt5 has not been shown to be exact"):
        added(base)
    with pytest.raises(ModelError, match="trained_text: longt5 has not been shown to be exact"):
        added(base, layer_vectors=False)
