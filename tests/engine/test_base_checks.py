"""Try base models that no test holds to a reference: what a prompt cannot stand before is refused before training."""

import itertools

import pytest
import torch
from helpers.every_architecture import (
    METHODS,
    TEXT,
    behind_embeddings,
    behind_text,
    build,
    difference,
    outcome,
    prompted,
    shrink,
    text_embeddings,
    text_states,
)
from helpers.paths import ROOT
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, BertConfig, OPTConfig

from prompt_tuning import add_soft_prompt, prompt_config
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.engine.base_checks import cache_shape
from prompt_tuning.errors import AdapterError, ModelError
from prompt_tuning.models.loading import check_method

EXACT = "exact, PEFT's forward"
OTHER_SHAPES = "refused: its layers do not all keep keys and values of one shape, as a prefix has them"
NO_PREFIX = "refused: its attention has not been compared with a prefix computed by hand"
MORE = "refused: it reads more of a token than its embedding, and a soft prompt has no more"
FAILS = "refused: it fails with embeddings in place of token ids"
# The outcomes of each of METHODS for one architecture of each family.
FAMILIES = {
    "ctrl": [EXACT, EXACT, EXACT],  # It scales its input in place.
    "deepseek_v3": [EXACT, EXACT, OTHER_SHAPES],
    "encoder-decoder": [EXACT, EXACT, NO_PREFIX],
    "falcon": [EXACT, EXACT, EXACT],
    "gemma3": ["exact, packed rows"] * 3,
    "gemma4": [FAILS, FAILS, OTHER_SHAPES],
    "gemma3n_text": [MORE, MORE, OTHER_SHAPES],
    "lfm2": [EXACT, EXACT, OTHER_SHAPES],
    "moss_transcribe_diarize": [EXACT, EXACT, EXACT],  # It holds a Qwen3, and gives it no positions.
    "t5gemma": [EXACT, EXACT, NO_PREFIX],
}


def test_per_layer_embeddings_of_token_ids_are_refused():
    # Gemma 3n leaves them out of embeddings in place of ids, and its loss would be another.
    with pytest.raises(ModelError, match=r"Gemma3nForCausalLM: it reads more of a token than its embedding.*lora"):
        prompted(build(CONFIG_MAPPING["gemma3n_text"]), "prompt_tuning", None)
    # Gemma 4 looks the ids up by their embeddings, and a trained embedding has none.
    with pytest.raises(ModelError, match="Gemma4ForCausalLM: it fails with embeddings in place of token ids"):
        prompted(build(CONFIG_MAPPING["gemma4_text"]), "prompt_tuning", None)


def test_gemma_4_without_per_layer_embeddings_takes_a_soft_prompt():
    base = build(CONFIG_MAPPING["gemma4_unified_text"])
    assert difference(base, prompted(base, "prompt_tuning", text_embeddings(base)), behind_text) == ""


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "cpt"])
def test_an_encoder_is_refused_from_python_too(method):
    base = build(BertConfig)
    with pytest.raises(ModelError, match="BertLMHeadModel: tokens see those after them, as in an encoder"):
        add_soft_prompt(base, prompt_config(base, len(TEXT), PromptArguments(method=method), TEXT))


@pytest.mark.parametrize("training", [False, True])
def test_a_trial_leaves_the_mode_of_the_model(training):
    base = build(CONFIG_MAPPING["falcon"]).train(training)
    cache_shape(base)
    assert base.training == training


@pytest.mark.parametrize("architecture", ["falcon", "mpt", "xglm"])
def test_the_shape_of_a_prefix_is_that_of_the_keys_that_a_model_keeps(architecture):
    # PEFT reads it from the names in the configuration, and did not find the one head of Falcon.
    base = build(CONFIG_MAPPING[architecture])
    assert difference(base, prompted(base, "prefix_tuning", text_states(base)), behind_text) == ""


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("deepseek_v3", "do not all keep keys and values of one shape"),  # It keeps one latent vector for both.
        ("gemma4_text", "do not all keep keys and values of one shape"),
        ("lfm2", "do not all keep keys and values of one shape"),  # PEFT's prefix would reach some layers only.
        ("dory", "is not what it is behind their tokens"),  # It ignores past_key_values.
    ],
)
def test_a_prefix_that_a_model_would_not_read_as_text_is_refused(architecture, reason):
    with pytest.raises(ModelError, match=f"{reason}.* Take method prompt_tuning or lora"):
        prompted(build(CONFIG_MAPPING[architecture]), "prefix_tuning", None)


def test_a_prefix_of_another_shape_is_refused():
    base = build(CONFIG_MAPPING["falcon"])
    config = prompt_config(base, 4, PromptArguments(method="prefix_tuning"))
    config.num_layers = 3
    with pytest.raises(AdapterError, match=r"a prefix for \(3, 1, 8\) .* keeps \(4, 1, 8\)"):
        add_soft_prompt(base, config)


def test_embeddings_that_are_narrower_than_the_states_take_a_soft_prompt():
    sizes = dict(vocab_size=97, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4)
    config = OPTConfig(**sizes, word_embed_proj_dim=16, max_position_embeddings=64, init_std=0.3)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    prompt = torch.randn(len(TEXT), 16)
    assert difference(base, prompted(base, "prompt_tuning", prompt), behind_embeddings(prompt)) == ""


@pytest.mark.parametrize("architecture", ["encoder-decoder", "longt5", "prophetnet", "t5gemma"])
def test_a_prefix_of_an_untested_encoder_decoder_is_refused_by_its_configuration(architecture):
    with pytest.raises(ModelError, match=f"{architecture}: its attention has not been compared"):
        check_method(shrink(CONFIG_MAPPING[architecture]()), "prefix_tuning")


def test_an_encoder_that_takes_no_embeddings_is_refused():
    with pytest.raises(ModelError, match="FSMTForConditionalGeneration: it fails with embeddings in place"):
        prompted(build(CONFIG_MAPPING["fsmt"]), "prompt_tuning", None)


def test_an_end_token_that_is_switched_off_stays_off_behind_a_soft_prompt_of_an_encoder_decoder():
    base = build(CONFIG_MAPPING["t5"])
    base.generation_config.eos_token_id = list(range(97))  # Without the argument each text ends at its first token.
    model = prompted(base, "prompt_tuning", text_embeddings(base))
    settings = {"max_new_tokens": 5, "eos_token_id": None}
    expected = base.generate(torch.tensor([[*TEXT, 7, 8]]), **settings)
    assert expected.shape == (1, 6)
    assert torch.equal(model.generate(torch.tensor([[7, 8]]), **settings), expected)


@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")  # EncoderDecoderModel gives it.
@pytest.mark.parametrize("architecture", FAMILIES)
def test_each_method_is_exact_or_refused(architecture):
    assert [outcome(CONFIG_MAPPING[architecture], method) for method in METHODS] == FAMILIES[architecture]


def test_the_table_in_the_docs_agrees_and_has_no_wrong_outcome():
    lines = (ROOT / "docs" / "reference" / "architectures.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| " + " | ".join([*METHODS, "number", "architectures"]) + " |")
    documented = {}
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]):
        first, *others, number, names = line.strip("| ").split(" | ")
        outcomes = [first, *(first if outcome == "the same" else outcome for outcome in others)]
        assert len(names.split(", ")) == int(number)
        documented |= dict.fromkeys(names.split(", "), outcomes)
    assert not [name for name, outcomes in documented.items() if "wrong" in " ".join(outcomes)]
    assert {name: documented[name] for name in FAMILIES} == FAMILIES
