"""Hold trained tokens, with and without layer vectors, to a plain forward of the base model that is written here."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from helpers.architectures import SETTINGS, VOCABULARY, build, left_padded, right_padded
from helpers.models import tiny_t5
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.engine.likelihood import log_likelihoods
from prompt_tuning.engine.shared_prefix import SharedPrefixModel, compute_prompt_once
from prompt_tuning.errors import AdapterError, ModelError
from prompt_tuning.models.initialization import layer_scales, saved_prompt
from prompt_tuning.models.prompts import add_soft_prompt, load_adapter, prompt_config

STARTS = [30, 31, 32, 33]
OPENS, *ENDING = range(VOCABULARY, VOCABULARY + 4)  # The trained ids: one that opens every row, and three that end it.
SOURCES = [[20, 31, 4], [20], [20, 12, 13, 14, 15, 16], [44, 5]]
ANSWERS = [[55, 66, 3], [21], [17, 18, 19, 21], [5, 6]]
SOURCE_ROWS = [[7, OPENS, *source, *ENDING] for source in SOURCES]
ROWS = [source + answer for source, answer in zip(SOURCE_ROWS, ANSWERS, strict=True)]
TARGETS = [len(answer) for answer in ANSWERS]
GREEDY = dict(max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)


def trained(base, length=3, *, seed=1, method="prompt_tuning", layer_vectors=True, starts=STARTS):
    """Return a model whose prompt, text and vectors have moved from their start."""
    args = PromptArguments(method=method, layer_vectors=layer_vectors)
    torch.manual_seed(seed)
    config = prompt_config(base, length, args, text_ids=starts)
    scales = torch.tensor([0.5, 1.0, 2.0]) if layer_vectors else None
    model = add_soft_prompt(base, config, layer_scales=scales)
    for parameter in weights(model):
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def weights(model):
    return [parameter for parameter in model.prompt_encoder.parameters() if parameter.numel()]


def part(model, name="default"):
    return model.prompt_encoder[name].trained_tokens


def plain_logits(model, row, name="default"):
    """Return the base model's logits `[T, V]` of one row behind its prompt, with hooks and embeddings made here."""
    base, encoder, tokens = model.base_model, model.prompt_encoder[name], part(model, name)
    ids = torch.tensor(row)
    is_text = ids >= VOCABULARY
    embeds = base.get_input_embeddings()(ids.masked_fill(is_text, 0)).clone()
    embeds[is_text] = tokens.text_embeddings[ids[is_text] - VOCABULARY].to(embeds.dtype)
    columns = torch.where(is_text, ids - VOCABULARY + tokens.num_virtual, -1)
    settings = {}
    if tokens.num_virtual or not model.peft_config[name].num_virtual_tokens:
        embeds = torch.cat([encoder.embedding.weight.to(embeds.dtype), embeds])
        columns = torch.cat([torch.arange(tokens.num_virtual), columns])
    else:
        settings["cache"] = model.get_prompt(batch_size=1)
    hooks = []
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    for number, layer in enumerate(layers if tokens.layer_vectors is not None else ()):

        def add(module, args, number=number):
            vectors = tokens.layer_vectors[number][columns.clamp(min=0)] * tokens.layer_scales[number]
            return (args[0] + (vectors * (columns >= 0)[:, None]).to(args[0].dtype), *args[1:])

        hooks.append(layer.register_forward_pre_hook(add))
    try:
        return base(inputs_embeds=embeds[None], **settings).logits[0, -len(row) :]
    finally:
        for hook in hooks:
            hook.remove()


def plain_loss(model, names=None):
    total = 0
    names = names or ["default"] * len(ROWS)
    for row, count, name in zip(ROWS, TARGETS, names, strict=True):
        logits = plain_logits(model, row, name)[-count - 1 : -1]
        total = total + F.cross_entropy(logits, torch.tensor(row[-count:]), reduction="sum")
    return total / sum(TARGETS)


def plain_greedy(model, row, name="default", steps=4):
    ids = list(row)
    for _ in range(steps):
        ids.append(plain_logits(model, ids, name)[-1].argmax().item())
    return ids[len(row) :]


def gradient(loss, model):
    return torch.cat([tensor.flatten() for tensor in torch.autograd.grad(loss, weights(model))])


def written(model, rows, **settings):
    batch = pad_left(rows, 0)
    generated = model.generate(**batch, **(GREEDY | settings))
    assert torch.equal(generated[:, : batch["input_ids"].shape[1]], batch["input_ids"])
    return generated[:, batch["input_ids"].shape[1] :].tolist()


def check_against_plain_forward(model):
    """Check loss, gradient, logits and text of padded batches."""
    expected = plain_loss(model)
    expected_gradient = gradient(expected, model)
    for batch in (right_padded(ROWS, TARGETS), left_padded(ROWS, TARGETS)):
        output = model(**batch)
        assert abs(output.loss.item() - expected.item()) < 1e-5
        assert (gradient(output.loss, model) - expected_gradient).norm() / expected_gradient.norm() < 1e-4
        with torch.no_grad():
            logits = model(batch["input_ids"], batch["attention_mask"]).logits[:, -batch["input_ids"].shape[1] :]
        for row, mask, row_logits in zip(ROWS, batch["attention_mask"].bool(), logits, strict=True):
            assert torch.allclose(row_logits[mask], plain_logits(model, row), atol=1e-4)
    with torch.no_grad():
        expected_texts = [plain_greedy(model, row) for row in SOURCE_ROWS]
    assert written(model, SOURCE_ROWS) == expected_texts
    assert [written(model, [row])[0] for row in SOURCE_ROWS] == expected_texts
    with compute_prompt_once(model, [7, OPENS]):
        assert written(model, SOURCE_ROWS) == expected_texts


@pytest.mark.parametrize("architecture", [name for name in SETTINGS if name != "bloom"])
def test_layer_vectors_have_the_loss_gradient_and_text_of_a_plain_forward(architecture):
    check_against_plain_forward(trained(build(architecture)))


@pytest.mark.parametrize("length", [0, 3])
@pytest.mark.parametrize("architecture", ["bloom", "llama", "mistral, window 6"])
def test_text_without_layer_vectors_has_the_loss_gradient_and_text_of_a_plain_forward(architecture, length):
    check_against_plain_forward(trained(build(architecture), length, layer_vectors=False))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["prompt_tuning, no prompt", "prefix_tuning", "prompt_tuning, no text"])
def test_other_trained_tokens_have_the_loss_gradient_and_text_of_a_plain_forward(architecture, method, monkeypatch):
    base = build(architecture)
    if method == "prompt_tuning, no text":
        monkeypatch.setitem(globals(), "ROWS", [[id for id in row if id < VOCABULARY] for row in ROWS])
        monkeypatch.setitem(globals(), "SOURCE_ROWS", [[id for id in row if id < VOCABULARY] for row in SOURCE_ROWS])
        check_against_plain_forward(trained(base, starts=()))
    else:
        check_against_plain_forward(trained(base, 0 if "no" in method else 3, method=method.split(",")[0]))


@pytest.mark.parametrize("architecture", [name for name in SETTINGS if name != "bloom"])
def test_text_before_the_first_trained_token_is_read_once_and_without_a_gradient(architecture, monkeypatch):
    passage = [*range(10, 30), *range(10, 20)]
    sources = [[*passage, 40, *ENDING], [*passage, 41, 42, *ENDING], [50, *ENDING], ENDING]
    rows = [source + answer for source, answer in zip(sources, ANSWERS, strict=True)]
    monkeypatch.setitem(globals(), "ROWS", rows)
    model = trained(build(architecture), 0)
    read = {True: [], False: []}
    first_layer = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    first_layer.register_forward_pre_hook(lambda _, args: read[torch.is_grad_enabled()].append(args[0].shape[1]))

    expected = plain_loss(model)
    expected_gradient = gradient(expected, model)
    for length in read.values():
        length.clear()
    output = model(**right_padded(rows, TARGETS))
    assert abs(output.loss.item() - expected.item()) < 1e-5
    assert (gradient(output.loss, model) - expected_gradient).norm() / expected_gradient.norm() < 1e-4
    # The logits of an answer's last token predict no target.
    assert sum(read[True]) == len(rows) * len(ENDING) + sum(TARGETS) - len(rows)
    assert sum(read[False]) == len(passage) + 1 + 2 + 1


@pytest.mark.parametrize("length", [0, 3])
def test_untrained_it_is_the_hard_prompt_to_the_bit(length):
    base = build("llama")
    opening = [8, 9, 10][:length]
    config = prompt_config(base, length, PromptArguments(layer_vectors=True), text_ids=STARTS)
    model = add_soft_prompt(base, config, base.get_input_embeddings().weight[opening])
    for row in ROWS:
        assert torch.equal(model(torch.tensor([row])).logits, base(torch.tensor([opening + ordinary(row)])).logits)
    packed = model(**right_padded(ROWS, TARGETS)).logits
    part(model).layer_vectors = None  # Without vectors the same sequence runs through the same layers.
    assert torch.equal(packed, model(**right_padded(ROWS, TARGETS)).logits)


def ordinary(row):
    return [STARTS[id - VOCABULARY] if id >= VOCABULARY else id for id in row]


@pytest.mark.parametrize("architecture", ["llama", "opt"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_layers_that_run_again_in_the_backward_pass_add_the_same_vectors(architecture, checkpoint):
    model = trained(build(architecture))
    expected = gradient(plain_loss(model), model)
    model.train()
    if checkpoint:
        model.base_model.activation_checkpointing_enable()
    first = model(**right_padded(ROWS[:2], TARGETS[:2])).loss
    loss = model(**right_padded(ROWS, TARGETS)).loss  # Another batch, before the backward pass of the first.
    alone = gradient(first, model)
    assert (gradient(loss, model) - expected).norm() / expected.norm() < 1e-4
    assert torch.allclose(alone, gradient(model(**right_padded(ROWS[:2], TARGETS[:2])).loss, model), atol=1e-5)


def test_rows_of_several_adapters_have_each_their_own_tokens():
    model = trained(build("llama"))
    model.add_adapter("short", prompt_config(model.base_model, 0, text_ids=STARTS))
    other = prompt_config(model.base_model, 2, PromptArguments(layer_vectors=True), text_ids=[5, 6, 7, 8, 9])
    model.add_adapter("other", other)
    torch.manual_seed(3)
    for parameter in [*part(model, "short").parameters(), *model.prompt_encoder["other"].parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    names = ["other", "default", "short", "other"]
    expected = plain_loss(model, names)
    expected_gradient = gradient(expected, model)
    loss = model(**left_padded(ROWS, TARGETS), adapter_names=names).loss
    assert abs(loss.item() - expected.item()) < 1e-5
    assert (gradient(loss, model) - expected_gradient).norm() / expected_gradient.norm() < 1e-4
    with torch.no_grad():
        texts = [plain_greedy(model, row, name) for row, name in zip(SOURCE_ROWS, names, strict=True)]
    assert written(model, SOURCE_ROWS, adapter_names=names) == texts
    assert texts[0] != plain_greedy(model, SOURCE_ROWS[0])
    model.set_adapter("short")
    assert written(model, SOURCE_ROWS) == [plain_greedy(model, row, "short") for row in SOURCE_ROWS]
    with model.disable_adapter():
        hard = [ordinary(row) for row in SOURCE_ROWS]
        assert written(model, hard) == written_by_base(model.base_model, hard)


def written_by_base(base, rows):
    return [base.generate(torch.tensor([row]), **GREEDY)[0, len(row) :].tolist() for row in rows]


def test_generate_shows_ordinary_ids_to_processors_and_returns_those_of_the_caller():
    model = trained(build("llama"))
    seen = []

    class Watcher(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(input_ids[:, :-1] if seen else input_ids)
            return scores

    settings = dict(repetition_penalty=1.7, no_repeat_ngram_size=2, logits_processor=LogitsProcessorList([Watcher()]))
    texts = written(model, SOURCE_ROWS, **settings)
    assert seen[0].tolist() == pad_left([ordinary(row) for row in SOURCE_ROWS], 0)["input_ids"].tolist()
    for row, text in zip(SOURCE_ROWS, texts, strict=True):
        assert written(model, [row], **settings)[0] == text
        penalty, grams = RepetitionPenaltyLogitsProcessor(1.7), NoRepeatNGramLogitsProcessor(2)
        ids = list(row)
        for _ in text:
            shown = torch.tensor([ordinary(ids)])
            with torch.no_grad():
                ids.append(grams(shown, penalty(shown, plain_logits(model, ids)[-1:]))[0].argmax().item())
        assert ids[len(row) :] == text
    beams = dict(num_beams=3, num_return_sequences=3)
    together = model.generate(**pad_left(SOURCE_ROWS, 0), **(GREEDY | beams))
    alone = [model.generate(torch.tensor([row]), **(GREEDY | beams))[:, len(row) :] for row in SOURCE_ROWS]
    assert torch.equal(together[:, -4:], torch.cat(alone))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_choices_after_trained_text_have_the_likelihood_of_a_plain_forward(architecture):
    model = trained(build(architecture), layer_vectors=architecture != "bloom")
    choices = [[[5, 6], [5, 7], [8]], [[9, 10, 11]], [[1], [2]], [[3, 4], [12]]]
    for row, of_row, scores in zip(SOURCE_ROWS, choices, log_likelihoods(model, SOURCE_ROWS, choices), strict=True):
        for choice, score in zip(of_row, scores, strict=True):
            logits = plain_logits(model, row + choice)[len(row) - 1 : -1].log_softmax(-1)
            expected = logits[torch.arange(len(choice)), choice].sum().item()
            assert score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_in_bfloat16_a_row_in_a_batch_is_near_what_it_is_alone(architecture):
    model = trained(build(architecture).to(torch.bfloat16))
    assert all(weight.dtype == torch.float32 for weight in weights(model))
    output = model(**right_padded(ROWS, TARGETS))
    start = 0
    for row, count in zip(ROWS, TARGETS, strict=True):
        with torch.no_grad():
            alone = plain_logits(model, row)[-count - 1 : -1].float()
        # The bound is that of soft prompts in tests/engine/test_half_precision.py.
        assert (output.logits[start : start + count].float() - alone).abs().max() < 0.15 * alone.std()
        start += count
    output.loss.backward()
    assert all(weight.grad.isfinite().all() and weight.grad.dtype == torch.float32 for weight in weights(model))


def test_threads_that_generate_at_once_read_each_their_own_rows():
    model = trained(build("llama"))
    rows = [SOURCE_ROWS, SOURCE_ROWS[::-1], SOURCE_ROWS[:1], SOURCE_ROWS[1:3]] * 4
    expected = [written(model, batch) for batch in rows]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda batch: written(model, batch), rows)) == expected


def test_rows_continue_behind_a_cache_of_trained_tokens():
    model = trained(build("llama"))
    row = torch.tensor([SOURCE_ROWS[0]])
    with torch.no_grad():
        read = model(row[:, :-2], use_cache=True)
        logits = model(row[:, -2:], cache=read.cache).logits
    assert torch.allclose(logits[0], plain_logits(model, SOURCE_ROWS[0])[-2:], atol=1e-4)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("length", [0, 3])
def test_saved_and_loaded_it_predicts_the_same_and_plain_peft_refuses_it(method, length, tmp_path):
    if method == "prefix_tuning" and not length:
        return
    model = trained(build("llama"), length, method=method)
    model.peft_config["default"].trained_text = {"mode": "ending"}
    expected = written(model, SOURCE_ROWS)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["prompt_type"]) == ("TRAINED_TOKENS", method.upper())
    with pytest.raises(KeyError, match="TRAINED_TOKENS"):
        PeftModel.from_pretrained(build("llama"), tmp_path)
    for loaded in (
        load_adapter(build("llama"), tmp_path),
        load_adapter(build("llama"), tmp_path, is_trainable=True),
        SharedPrefixModel.from_pretrained(build("llama"), tmp_path),
    ):
        assert written(loaded, SOURCE_ROWS) == expected
        assert loaded.peft_config["default"].trained_text == {"mode": "ending"}
        assert torch.equal(part(loaded).layer_scales, part(model).layer_scales)
    loaded.load_adapter(tmp_path, "again")
    loaded.set_adapter("again")
    assert written(loaded, SOURCE_ROWS) == expected
    loaded.save_pretrained(tmp_path / "both")
    assert (tmp_path / "both/again/adapter_model.safetensors").read_bytes() == (
        tmp_path / "adapter_model.safetensors"
    ).read_bytes()
    base = loaded.unload()
    assert written_by_base(base, [ROWS[0][-2:]]) == written_by_base(build("llama"), [ROWS[0][-2:]])


def test_a_soft_prompt_alone_keeps_the_format_of_peft(tmp_path):
    model = add_soft_prompt(build("llama"), prompt_config(build("llama"), 3))
    model.save_pretrained(tmp_path)
    assert "text_token_ids" not in json.loads((tmp_path / "adapter_config.json").read_text())
    assert isinstance(PeftModel.from_pretrained(build("llama"), tmp_path), PeftModel)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text_token_ids", [1, 2], "text_embeddings has the shape"),
        ("text_token_ids", "no", "text_token_ids"),
        ("text_token_ids", [1, 2, 3, 9999], "an id is 9,999"),
        ("text_token_ids", [1, 2, 3, -1], "text_token_ids.3 is -1"),
        ("text_token_ids", [1, 2, 3, 10**30], "an id is 1,000,"),
        ("layer_vectors", 1, "layer_vectors"),
        ("layer_vectors", False, "its weights have layer_vectors, and its configuration has none"),
        ("peft_type", "PROMPT_TUNING", "its weights have text_embeddings, and its configuration has none"),
        ("num_virtual_tokens", -1, "expected a whole number from 0"),
        ("num_virtual_tokens", 2, "prompt_embeddings has the shape"),
        ("num_layers", 4, "layer_vectors has the shape"),
        ("prompt_type", "LORA", "not the configuration of an adapter"),
        ("trained_text", ["no"], "trained_text"),
    ],
)
@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_a_damaged_configuration_is_refused(name, value, message, tmp_path):
    trained(build("llama")).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(AdapterError, match=message):
        load_adapter(build("llama"), tmp_path)


def test_other_architectures_are_refused_by_name():
    with pytest.raises(ModelError, match="layer_vectors: bloom has not been shown"):
        trained(build("bloom"))
    falcon = AutoModelForCausalLM.from_config(
        FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    )
    with pytest.raises(ModelError, match="trained_text: falcon has not been shown"):
        trained(falcon, layer_vectors=False)


def test_an_encoder_decoder_and_another_start_refuse_saved_trained_tokens(tmp_path):
    trained(build("llama")).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="Set adapter instead"):
        saved_prompt(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace("CAUSAL_LM", "SEQ_2_SEQ_LM"))
    with pytest.raises(AdapterError, match="its weights have no decoder_vectors"):
        load_adapter(tiny_t5(VOCABULARY), tmp_path)


def test_scales_are_the_median_size_of_each_layers_input_without_the_first_token():
    base = build("llama")
    rows = [[5, 6, 7], [8, 9, 10, 11]]
    states = [base(torch.tensor([row]), output_hidden_states=True).hidden_states[:-1] for row in rows]
    for layer, scale in enumerate(layer_scales(base, rows)):
        sizes = torch.cat([hidden[layer][0, 1:].square().mean(-1).sqrt() for hidden in states])
        assert scale == pytest.approx(sizes.median().item())
