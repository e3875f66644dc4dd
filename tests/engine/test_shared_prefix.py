"""Check the engine as a PEFT model: methods, adapters, losses, decoding, and the reasons it reports."""

import json
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers.architectures import (
    PROMPT,
    ROWS,
    SIZES,
    TARGETS,
    VOCABULARY,
    build,
    left_padded,
    reference_greedy,
    reference_loss,
    right_padded,
    row_logits,
)
from peft import (
    PeftModel,
    PeftModelForCausalLM,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.engine.kv_cache import RoomyLayer
from prompt_tuning.engine.shared_prefix import SharedPrefixModel, compute_prompt_once
from prompt_tuning.errors import AdapterError
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config

# Plain PEFT gives this warning each time it generates with a prompt.
POSITION_WARNING = pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
GREEDY = dict(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
PROJECTED = dict(prefix_projection=True, encoder_hidden_size=24)
METHODS = {
    "prompt_tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPT),
    "p_tuning": lambda: PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=PROMPT, encoder_hidden_size=24, encoder_num_layers=2
    ),
    "p_tuning, lstm": lambda: PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=PROMPT,
        encoder_hidden_size=24,
        encoder_num_layers=2,
        encoder_reparameterization_type="LSTM",
        encoder_dropout=0.0,
    ),
    "prefix_tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPT),
    "prefix_tuning, projected": lambda: PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=PROMPT, **PROJECTED
    ),
}


def soft(base, method="prompt_tuning"):
    torch.manual_seed(1)
    model = SharedPrefixModel(base, METHODS[method]())
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def weights(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradient(loss, model):
    return torch.cat([tensor.flatten() for tensor in torch.autograd.grad(loss, weights(model))])


def written(model, rows, **settings):
    """Return the new tokens of each row, generated in one left-padded batch."""
    batch = pad_left(rows, 0)
    return model.generate(**batch, **(GREEDY | settings))[:, batch["input_ids"].shape[1] :].tolist()


def with_prefix(base, cache_of_one, row):
    """Return the base model's logits `[len(row), V]` of one unpadded row after a prefix of keys and values."""
    cache = DynamicCache(config=base.config)
    for number, layer in enumerate(cache_of_one.layers):
        cache.update(layer.keys, layer.values, number)
    return base(torch.tensor([row]), cache=cache).logits[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral, window 6", "bloom"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_loss_gradient_and_text_of_single_rows(architecture, method):
    base = build(architecture)
    model = soft(base, method)
    prefix = method.startswith("prefix")

    def single(row):
        prompt = model.get_prompt(batch_size=1)
        if prefix:
            return with_prefix(base, prompt, row)
        embeds = torch.cat([prompt[0], base.get_input_embeddings()(torch.tensor(row))])[None]
        return base(inputs_embeds=embeds).logits[0, PROMPT:]

    expected = sum(
        F.cross_entropy(single(row)[-count - 1 : -1], torch.tensor(row[-count:]), reduction="sum")
        for row, count in zip(ROWS, TARGETS, strict=True)
    ) / sum(TARGETS)
    expected_gradient = gradient(expected, model)
    for batch in (right_padded(), left_padded()):
        loss = model(**batch).loss
        assert abs(loss.item() - expected.item()) < 1e-5
        assert (gradient(loss, model) - expected_gradient).norm() / expected_gradient.norm() < 1e-4

    together = written(model, ROWS, max_new_tokens=4)
    for row, new in zip(ROWS, together, strict=True):
        ids = list(row)
        for _ in range(4):
            ids.append(single(ids)[-1].argmax().item())
        assert new == ids[len(row) :] == written(model, [row], max_new_tokens=4)[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_prompt_is_computed_once_for_a_batch(method):
    base = build("llama")
    model = soft(base, method)
    encoder = model.prompt_encoder["default"]
    seen = []
    encoder.register_forward_hook(lambda module, args, output: seen.append(output.shape[0]))
    model(**right_padded()).loss.backward()
    if method != "prompt_tuning":  # The embedding of prompt_tuning is read without a call.
        assert seen == [1]
        seen.clear()
        PeftModelForCausalLM.forward(model, **right_padded())
        assert seen == [1 if method.startswith("p_tuning") else len(ROWS)]


def test_layers_see_no_padding_and_a_common_prefix_once_and_only_targets_have_logits():
    base = build("llama")
    model = soft(base)
    widths = {}
    base.model.layers[0].mlp.register_forward_hook(lambda module, args, output: widths.update(layer=output.shape))
    base.lm_head.register_forward_hook(lambda module, args, output: widths.update(head=output.shape))
    rows = [ROWS[0], *ROWS[2:]]
    batch = right_padded(rows, [2, 3, 1])
    model(**batch)
    # All rows start with the same two tokens, and a row's last token predicts nothing.
    assert widths["layer"][1] == PROMPT + 2 + sum(len(row) - 2 - 1 for row in rows)
    assert widths["head"][-2] == 6
    PeftModelForCausalLM.forward(model, **batch)
    assert widths["layer"][:2] == (len(rows), PROMPT + max(map(len, rows)))


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_the_common_prefix_of_all_rows_joins_the_prompt(architecture):
    base = build(architecture)
    model = soft(base)
    weight = weights(model)[0]
    common_prefix = [7, 20, 33, 41]
    rows = [common_prefix + row for row in ROWS]
    total = 0
    for row, count in zip(rows, TARGETS, strict=True):
        embeds = torch.cat([weight, base.get_input_embeddings()(torch.tensor(row))])[None]
        logits = base(inputs_embeds=embeds).logits[0, -count - 1 : -1]
        total = total + F.cross_entropy(logits, torch.tensor(row[-count:]), reduction="sum")
    expected = total / sum(TARGETS)
    loss = model(**right_padded(rows)).loss
    assert abs(loss.item() - expected.item()) < 1e-5
    expected_gradient = gradient(expected, model)
    assert (gradient(loss, model) - expected_gradient).norm() / expected_gradient.norm() < 1e-4


def test_each_row_may_have_the_prompt_of_its_own_adapter():
    base = build("llama")
    model = soft(base)
    model.add_adapter("other", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    prompts = {name: model.prompt_encoder[name].embedding.weight for name in ("default", "other")}
    names = ["default", "other", "other", "default"]
    loss = model(**right_padded(), adapter_names=names).loss
    expected = reference_loss(base, [prompts[name] for name in names])
    assert abs(loss.item() - expected.item()) < 1e-5
    expected_gradient = torch.autograd.grad(expected, prompts["default"])[0]
    assert (
        torch.autograd.grad(loss, prompts["default"])[0] - expected_gradient
    ).norm() / expected_gradient.norm() < 1e-4
    together = written(model, ROWS, adapter_names=names)
    assert together == [reference_greedy(base, prompts[n], row, 8) for n, row in zip(names, ROWS, strict=True)]
    assert model.active_adapter == "default"

    with pytest.raises(AdapterError, match="3 names for 4 rows"):
        model(**right_padded(), adapter_names=names[:3])
    with pytest.raises(AdapterError, match="adapter third is not loaded; there are default, other"):
        model(**right_padded(), adapter_names=["third"] * 4)


@pytest.mark.parametrize("architecture", ["llama", "opt", "mistral, window 6", "bloom"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_whole_evaluation_computes_one_cache_of_the_prompt(architecture, method, monkeypatch):
    model = soft(build(architecture), method)
    expected = [written(model, ROWS[:2]), written(model, ROWS[2:]), written(model, [[9, 8, 7], [5, 4]])]
    computed = []
    get_prompt = model.get_prompt
    monkeypatch.setattr(model, "get_prompt", lambda **kwargs: computed.append(1) or get_prompt(**kwargs))
    with compute_prompt_once(model, ROWS[0][:1]):
        assert written(model, ROWS[:2]) == expected[0]
        assert written(model, ROWS[2:]) == expected[1]
        # Rows that pass a sliding window in a padded batch take another path.
        assert len(computed) == 1 or "window" in architecture
        assert written(model, [[9, 8, 7], [5, 4]]) == expected[2]  # These rows have another first token.
    assert written(model, ROWS[:2]) == expected[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma2"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_common_prefix_of_some_rows_is_read_once_and_changes_no_token(architecture, method):
    model = soft(build(architecture), method)
    passage, other = list(range(30, 48)), list(range(60, 78))
    ends = [passage, [5, 6]], [other, [8]], [passage, [9]], [[7], [20]], [passage, []], [other, [8, 9, 3]]
    rows = [opening + end for opening, end in [*ends, ends[0]]]
    alone = [written(model, [row])[0] for row in rows]
    read = []
    model.word_embeddings.register_forward_hook(lambda module, args, output: read.append(args[0].shape))
    assert written(model, rows) == alone
    # The model reads 17 tokens of one passage (a row ends there), 18 of the other, then the rest of each row without
    # its last token. `generate` reads the last tokens of all rows together.
    assert sum(shape.numel() for shape in read if shape[0] == 1) == 17 + 18 + sum([2, 0, 1, 1, 0, 2, 2])
    assert {shape[0] for shape in read if len(shape) == 2} == {1, len(rows)}


def test_a_new_token_does_not_copy_keys_and_values():
    layer = DynamicLayer()
    first = torch.randn(2, 3, 5, 4)
    layer.update(first, -first)
    roomy = RoomyLayer(layer)
    places = set()
    grown = first
    for _ in range(70):
        new = torch.randn(2, 3, 1, 4)
        grown = torch.cat([grown, new], 2)
        keys, values = roomy.update(new, -new)
        assert torch.equal(keys, grown) and torch.equal(values, -grown)
        places.add(keys.data_ptr())
    assert len(places) == 2  # The layer was moved once, when it was full.
    kept = roomy.keys
    roomy.batch_select_indices(torch.tensor([1]))
    new = torch.randn(1, 3, 1, 4)
    assert torch.equal(roomy.update(new, new)[0], torch.cat([grown[1:], new], 2))
    assert torch.equal(kept, grown)


def test_finished_rows_leave_the_batch():
    base = build("llama")
    model = soft(base)
    alone = [written(model, [row], max_new_tokens=24)[0] for row in ROWS]
    stops = {row[2] for row in alone[:3]}  # With these end tokens rows end at different steps.
    ended = [next((n + 1 for n, token in enumerate(row) if token in stops), 24) for row in alone]
    assert len(set(ended)) > 1
    sizes = []
    base.register_forward_hook(lambda module, args, output: sizes.append(output.logits.shape[0]))
    together = written(model, ROWS, max_new_tokens=24, eos_token_id=sorted(stops))
    assert sizes[-1] < len(ROWS)
    for new, row, end in zip(together, alone, ended, strict=True):
        assert new == (row[:end] + [0] * 24)[: len(new)]


def test_beams_and_returned_sequences_are_those_of_a_single_row():
    model = soft(build("llama"))
    settings = dict(num_beams=4, num_return_sequences=2, max_new_tokens=6)
    together = written(model, ROWS, **settings)
    assert [len(together), len(together[0])] == [len(ROWS) * 2, 6]
    for number, row in enumerate(ROWS):
        assert together[2 * number : 2 * number + 2] == written(model, [row], **settings)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_beyond_rows_and_prompt_changes_no_text(side):
    model = soft(build("llama"))
    batch = pad_left(ROWS, 0)
    if side == "right":
        batch = right_padded()
    for more in (PROMPT + 1, 40):
        wide = {name: F.pad(batch[name], (more, 0) if side == "left" else (0, more)) for name in pad_left(ROWS, 0)}
        output = model.generate(**wide, **GREEDY)
        assert output[:, wide["input_ids"].shape[1] :].tolist() == written(model, ROWS)


def test_a_repetition_penalty_counts_a_rows_own_tokens():
    base = build("llama")
    model = soft(base)
    together = written(model, ROWS, repetition_penalty=3.0)
    for row, new in zip(ROWS, together, strict=True):
        assert new == written(model, [row], repetition_penalty=3.0)[0]
        ids = list(row)
        embeddings = base.get_input_embeddings()
        for _ in new:
            logits = base(inputs_embeds=torch.cat([weights(model)[0], embeddings(torch.tensor(ids))])[None]).logits
            scores = logits[0, -1]
            seen = torch.tensor(ids)
            scores[seen] = torch.where(scores[seen] > 0, scores[seen] / 3, scores[seen] * 3)
            ids.append(scores.argmax().item())
        assert new == ids[len(row) :]


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"repetition_penalty": 1.3}])
def test_n_grams_are_counted_in_a_rows_own_tokens(settings):
    base = build("llama")
    model = soft(base)
    rows = [[*row, row[-1]] for row in ROWS]  # The last token fills the prompt's positions, so it is there twice.
    together = written(model, rows, no_repeat_ngram_size=2, **settings)
    assert together == [written(model, [row], no_repeat_ngram_size=2, **settings)[0] for row in rows]
    if settings:
        return
    for row, new in zip(rows, together, strict=True):
        ids = list(row)
        for _ in new:
            scores = row_logits(base, weights(model)[0], ids)[-1].clone()
            banned = [after for before, after in pairwise(ids) if before == ids[-1]]
            scores[banned] = -torch.inf
            ids.append(scores.argmax().item())
        assert new == ids[len(row) :]


def test_sampling_follows_the_distribution_of_a_single_row():
    base = build("llama")
    model = soft(base)
    torch.manual_seed(0)
    settings = dict(do_sample=True, temperature=0.7, top_k=0, max_new_tokens=1, num_return_sequences=500)
    samples = torch.tensor(written(model, ROWS, **settings)).reshape(len(ROWS), 500)
    for row, drawn in zip(ROWS, samples, strict=True):
        embeds = torch.cat([weights(model)[0], base.get_input_embeddings()(torch.tensor(row))])[None]
        distribution = (base(inputs_embeds=embeds).logits[0, -1] / 0.7).softmax(-1)
        likely = distribution.argmax()
        spread = (distribution[likely] * (1 - distribution[likely]) / 500).sqrt()
        assert abs((drawn == likely).float().mean() - distribution[likely]) < 5 * spread + 1e-3


def test_the_models_generation_config_fills_the_gaps_of_a_passed_one():
    model = soft(build("llama"))
    base = model.get_base_model()
    batch = pad_left(ROWS, 0)
    config = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=None)
    expected = model.generate(**batch, generation_config=config, num_beams=3, pad_token_id=0)
    base.generation_config.update(num_beams=3, pad_token_id=0)
    assert torch.equal(model.generate(**batch, generation_config=config), expected)
    base.generation_config.update(num_beams=1, max_new_tokens=3)
    config = GenerationConfig(do_sample=False, eos_token_id=None)
    assert model.generate(**batch, generation_config=config).shape[1] == batch["input_ids"].shape[1] + 3


def test_a_setting_that_counts_new_tokens_keeps_finished_rows_in_the_batch():
    model = soft(build("llama"))
    settings = {"max_new_tokens": 12, "eos_token_id": list(range(1, 60))}
    model.get_base_model().generation_config.update(exponential_decay_length_penalty=(2, 1.5))
    together = written(model, ROWS, **settings)
    for row, new in zip(ROWS, together, strict=True):
        alone = written(model, [row], **settings)[0]
        assert new == (alone + [0] * 12)[: len(new)]


@pytest.mark.parametrize("architecture", ["llama", "mistral, window 6"])
def test_a_model_without_a_cache_writes_the_same_text_after_a_prompt(architecture):
    model = soft(build(architecture))
    expected = written(model, ROWS)
    assert written(model, ROWS, use_cache=False) == expected
    model.get_base_model().generation_config.use_cache = False
    assert written(model, ROWS) == expected == [written(model, [row])[0] for row in ROWS]


def test_arguments_with_a_cache_of_their_own_are_refused_and_a_models_own_setting_is_ignored():
    model = soft(build("llama"))
    for arguments in ({"cache": DynamicCache()}, {"prompt_lookup_num_tokens": 3}, {"assistant_model": model}):
        with pytest.raises(AdapterError, match=f"generate: {next(iter(arguments))} knows nothing of the prompt"):
            written(model, ROWS, **arguments)
    expected = written(model, ROWS)
    model.get_base_model().generation_config.cache_implementation = "static"
    assert written(model, ROWS) == expected


class Recorder(LogitsProcessor):
    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.tolist())
        return scores


def test_processors_and_criteria_see_the_ids_of_their_rows():
    """Show them what the base model's `generate` shows, without the ids that fill the prompt's positions."""
    model = soft(build("llama"))
    batch = pad_left(ROWS, 0)
    recorder = Recorder()
    allowed = []
    lengths = []

    class Limit(StoppingCriteria):  # Every row has another limit.
        limits = torch.tensor([2, 3, 5, 8])

        def __call__(self, input_ids, scores, **kwargs):
            lengths.append(input_ids.shape[1] - batch["input_ids"].shape[1])
            return lengths[-1] >= self.limits[: len(input_ids)]

    new = model.generate(
        **batch, **GREEDY | {"eos_token_id": 2, "pad_token_id": 0}, logits_processor=LogitsProcessorList([recorder]),
        stopping_criteria=StoppingCriteriaList([Limit()]),
        prefix_allowed_tokens_fn=lambda row, ids: allowed.append((row, ids.tolist())) or list(range(3, VOCABULARY)),
    )[:, batch["input_ids"].shape[1] :]  # fmt: skip
    assert recorder.seen[0] == batch["input_ids"].tolist() and lengths == [*range(1, 9)]
    assert recorder.seen[1] == torch.cat([batch["input_ids"], new[:, :1]], 1).tolist()
    assert allowed[: len(ROWS)] == list(enumerate(batch["input_ids"].tolist()))
    assert (new != 0).sum(1).tolist() == Limit.limits[: len(ROWS)].tolist()


@pytest.mark.parametrize("settings", [{"num_return_sequences": 2, "do_sample": True}, {"repetition_penalty": 1.1}])
@pytest.mark.parametrize("architecture", ["llama", "mistral, window 6"])
def test_a_constraint_gets_the_number_of_the_row_whose_ids_it_sees(architecture, settings):
    model = soft(build(architecture))
    seen = {}
    batch = pad_left(ROWS, 0)
    copies = settings.get("num_return_sequences", 1)

    def allowed(number, ids):
        seen.setdefault(number, ids.tolist())
        return [5 + number]

    new = model.generate(**batch, **GREEDY | settings, prefix_allowed_tokens_fn=allowed)[
        :, batch["input_ids"].shape[1] :
    ]
    assert new.tolist() == [[5 + number // copies] * 8 for number in range(len(ROWS) * copies)]
    assert all(seen[number][-len(row) :] == row for number, row in enumerate(ROWS))


def test_a_passed_processor_replaces_the_one_of_a_setting():
    model = soft(build("llama"))
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(3.0)])
    assert written(model, ROWS, logits_processor=processors, repetition_penalty=3.0) == written(
        model, ROWS, repetition_penalty=3.0
    )


def test_a_streamer_gets_the_row_and_then_the_new_tokens():
    model = soft(build("llama"))
    streamed = []

    class Streamer(BaseStreamer):
        def put(self, value):
            streamed.append(value.tolist())

        def end(self):
            streamed.append("end")

    new = written(model, ROWS[:1], streamer=Streamer())[0]
    assert streamed == [[ROWS[0]], *([token] for token in new), "end"]


def test_other_adapter_names_without_labels_are_refused_and_not_ignored():
    model = soft(build("llama"))
    batch = pad_left(ROWS[:2], 0)
    model.add_adapter("other", METHODS["prompt_tuning"]())
    assert model(**batch, adapter_names=["default"] * 2).logits is not None
    with pytest.raises(AdapterError, match="without input_ids and labels each row is run behind the active adapter's"):
        model(**batch, adapter_names=["default", "other"])


def test_a_prompt_disabled_twice_is_on_again_only_after_the_outer_block():
    model = soft(build("llama"))
    alone = model.get_base_model().generate(**pad_left(ROWS, 0), **GREEDY).tolist()
    with model.disable_adapter():
        with model.disable_adapter():
            pass
        assert model.generate(**pad_left(ROWS, 0), **GREEDY).tolist() == alone
    assert model.generate(**pad_left(ROWS, 0), **GREEDY).tolist() != alone


@pytest.mark.parametrize("architecture", ["mistral, window 6", "gemma3_text, window 6"])
def test_prompts_of_different_lengths_join_under_a_sliding_window(architecture):
    base = build(architecture)
    base.set_attn_implementation("eager")
    model = soft(base)
    model.add_adapter("other", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert model.execution_path.name == "cache"
    prompts = {name: model.prompt_encoder[name].embedding.weight for name in ("default", "other")}
    names = ["other", "default", "other", "default"]
    for rows, targets in (
        (ROWS, TARGETS),
        ([row[:3] for row in ROWS], [1] * 4),
    ):  # Short rows end near the window's end.
        expected = reference_loss(base, [prompts[name] for name in names], rows, targets)
        loss = model(**right_padded(rows, targets), adapter_names=names).loss
        assert abs(loss.item() - expected.item()) < 1e-5


def test_a_generation_config_and_returned_scores_are_honoured():
    model = soft(build("llama"))
    batch = pad_left(ROWS, 0)
    output = model.generate(**batch, **GREEDY, return_dict_in_generate=True, output_scores=True)
    assert output.sequences[:, batch["input_ids"].shape[1] :].tolist() == written(model, ROWS)
    assert len(output.scores) == 8
    model.get_base_model().generation_config.update(max_length=14, pad_token_id=0)
    assert model.generate(**batch, do_sample=False).shape == (4, 14)


def test_a_model_that_cannot_be_packed_takes_a_slower_path_and_logs_the_reason(caplog):
    base = build("llama")
    base.set_attn_implementation("eager")
    model = soft(base)
    assert model.execution_path.name == "cache"
    assert "runs eager attention, not a replaceable sdpa" in caplog.text
    base.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    path = model.execution_path
    assert path.name == "plain" and "activation checkpointing allows no cache" in path.reason
    assert abs(model(**right_padded()).loss.item() - reference_loss(base, weights(model)[0]).item()) < 1e-5
    with pytest.raises(AdapterError, match="rows with prompts of their own cannot be run"):
        model(**right_padded(), adapter_names=["default"] * 4)


def leave_to_peft(base):
    """Make a model one that the engine leaves to PEFT's own forward and `generate`."""
    base.config.model_type = "unknown"


def test_an_unknown_architecture_takes_pefts_forward_and_logs_it(caplog):
    base = build("llama")
    leave_to_peft(base)
    model = soft(base)
    assert "by PEFT's own forward: unknown has not been shown to be exact behind a shared prompt" in caplog.text
    assert abs(model(**left_padded()).loss.item() - reference_loss(base, weights(model)[0]).item()) < 1e-5
    assert written(model, ROWS) == [reference_greedy(base, weights(model)[0], row, 8) for row in ROWS]
    assert caplog.text.count("Rows are generated one at a time") == 1
    output = model.generate(torch.tensor([ROWS[0]]), **GREEDY, return_dict_in_generate=True, output_scores=True)
    assert output.sequences[0, len(ROWS[0]) :].tolist() == written(model, ROWS)[0] and len(output.scores) == 8
    output = model.generate(**pad_left(ROWS, 0), **GREEDY, return_dict_in_generate=True)
    assert output.sequences[:, max(map(len, ROWS)) :].tolist() == written(model, ROWS)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("method", METHODS)
def test_pefts_generate_writes_the_text_of_a_row_computed_step_by_step(method, architecture, use_cache):
    base = build(architecture)
    model = soft(base, method).eval()
    beams = written(model, ROWS, max_new_tokens=6, num_beams=3)
    leave_to_peft(base)
    assert model.execution_path.name == "plain"
    prompt = model.get_prompt(batch_size=1)
    expected = []
    for row in ROWS:
        ids = list(row)
        for _ in range(6):
            if method.startswith("prefix"):
                logits = with_prefix(base, prompt, ids)
            else:
                logits = row_logits(base, prompt[0], ids)
            ids.append(logits[-1].argmax().item())
        expected.append(ids[len(row) :])
    assert written(model, ROWS, max_new_tokens=6, use_cache=use_cache) == expected
    assert written(model, ROWS[:1], max_new_tokens=6, use_cache=use_cache) == expected[:1]
    assert written(model, ROWS, max_new_tokens=6, use_cache=use_cache, num_beams=3) == beams


def test_loss_counts_items_as_trainer_does_and_smooths_as_torch_does():
    model = soft(build("llama"))
    batch = right_padded()
    plain = model(**batch)
    assert plain.logits.shape == (sum(TARGETS), VOCABULARY)
    assert model(**batch, num_items_in_batch=40).loss.item() == pytest.approx(plain.loss.item() * sum(TARGETS) / 40)
    targets = batch["labels"][batch["labels"] != -100]
    expected = F.cross_entropy(plain.logits, targets, label_smoothing=0.1).item()
    assert model(**batch, label_smoothing=0.1).loss.item() == pytest.approx(expected)


def test_rows_without_targets_add_nothing_to_the_loss():
    base = build("llama")
    model = soft(base)
    batch = right_padded()
    batch["labels"][1] = -100
    with_one_less = model(**batch)
    rows = [row for number, row in enumerate(ROWS) if number != 1]
    kept = model(**right_padded(rows, [TARGETS[0], *TARGETS[2:]]))
    assert with_one_less.loss.item() == pytest.approx(kept.loss.item(), abs=1e-6)
    batch["labels"][:] = -100
    assert model(**batch, num_items_in_batch=5).loss.item() == 0
    assert model(**batch, num_items_in_batch=5, adapter_names=["default"] * len(ROWS)).loss.item() == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_rows_without_targets_give_all_that_is_trained_a_gradient_of_zero(architecture, method):
    """DDP and FSDP wait for the gradient of each process, and some batches have no target in one of them."""
    model = soft(build(architecture), method)
    if architecture == "llama":  # A checkpointed layer takes no cache, and bloom has no packed rows.
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    batch = right_padded()
    batch["labels"][:] = -100
    output = model(**batch, num_items_in_batch=5)
    output.loss.backward()
    assert output.logits.shape == (0, VOCABULARY)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert trained and all(weight.grad is not None and not weight.grad.any() for weight in trained)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo causes this warning.
@pytest.mark.parametrize(
    ("method", "checkpointed"), [("prompt_tuning", False), ("prompt_tuning", True), ("prefix_tuning", True)]
)
def test_compiled_layers_change_no_loss_and_no_gradient_to_rounding(method, checkpointed):
    base = build("llama")
    model = soft(base, method)
    loss = model(**right_padded()).loss
    expected_gradient = gradient(loss, model)
    if checkpointed:
        base.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
    model.compile_layers(backend="aot_eager")  # This backend needs no C++ compiler, which a user may lack.
    compiled = model(**right_padded()).loss
    assert abs(compiled.item() - loss.item()) < 1e-5
    assert (gradient(compiled, model) - expected_gradient).norm() / expected_gradient.norm() < 1e-4
    if method == "prefix_tuning":
        return
    plain = build("llama")  # It has the same weights.
    assert written(model.eval(), ROWS) == [reference_greedy(plain, weights(model)[0], row, 8) for row in ROWS]


def test_a_half_precision_model_keeps_its_prompt_in_float32():
    base = build("llama").to(torch.bfloat16)
    model = add_soft_prompt(base, prompt_config(base, PROMPT), torch.randn(PROMPT, 32))
    loss = model(**right_padded()).loss
    assert weights(model)[0].dtype == torch.float32 and loss.dtype == torch.float32
    assert gradient(loss, model).dtype == torch.float32
    assert len(written(model, ROWS)[0]) == 8


@POSITION_WARNING
@pytest.mark.parametrize("method", METHODS)
def test_the_saved_adapter_predicts_the_same_in_plain_peft(method, tmp_path):
    model = soft(build("llama"), method)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert type(plain) is PeftModelForCausalLM
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    for row, count in zip(ROWS, TARGETS, strict=True):
        batch = right_padded([row], [count])
        expected = model(**batch)
        output = plain(**batch)
        assert output.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
        torch.testing.assert_close(output.logits[0, -count - 1 : -1], expected.logits, rtol=1e-4, atol=1e-4)
        if method.startswith("prefix"):
            # PEFT's generate puts a prefix before every new token (tests/upstream/test_peft_causal.py).
            ids = list(row)
            for _ in range(4):
                ids.append(plain(torch.tensor([ids])).logits[0, -1].argmax().item())
            text = [ids[len(row) :]]
        else:
            text = written(plain, [row], max_new_tokens=4, use_cache=False)
        assert text == written(model, [row], max_new_tokens=4)


def test_a_minimum_length_counts_the_same_tokens_with_and_without_a_prompt():
    base = build("llama")
    model = add_soft_prompt(base, prompt_config(base, PROMPT), torch.randn(PROMPT, 32))
    batch = {"input_ids": torch.tensor([ROWS[0]]), "attention_mask": torch.ones(1, len(ROWS[0]), dtype=torch.long)}
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": list(range(1, 97))}
    for model_or_base in (base, model):
        written = model_or_base.generate(**batch, min_length=len(ROWS[0]) + 6, **settings)
        assert written.shape[1] == len(ROWS[0]) + 7  # The row has six ordinary tokens and an end token.


def test_a_penalty_counts_a_rows_own_tokens_past_a_sliding_window():
    base = build("mistral, window 6")
    model = add_soft_prompt(base, prompt_config(base, PROMPT), torch.randn(PROMPT, 32)).eval()

    def written(rows):
        batch = pad_left(rows, 0)
        settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        return model.generate(**batch, repetition_penalty=1.3, **settings)[:, batch["input_ids"].shape[1] :].tolist()

    assert written(ROWS) == [written([row])[0] for row in ROWS]


def test_rotary_positions_that_depend_on_a_batch_are_reported(caplog):
    rope = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[4.0] * 4, factor=4.0)
    rope |= {"original_max_position_embeddings": 16}
    base = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope)).eval()
    model = add_soft_prompt(base, prompt_config(base, PROMPT)).eval()
    model(**right_padded([ROWS[0]], [3]))
    assert "rotary" not in caplog.text
    model(**right_padded([ROWS[0], [7] * 30], [3, 1]))
    assert "longrope rotary positions change for sequences beyond 16 positions" in caplog.text
