"""`method: auto`: the settings it becomes, what of the user's it keeps, and when it may not be combined."""

import pytest
from transformers import FalconConfig

from prompt_tuning.errors import ModelError, RecipeError
from prompt_tuning.recipe.drafts import checked_draft
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs.prepare import prepare

ENDING = "question_answering/instruction_last"
COLUMN_LAST = "source: '{{ context }} {{ question }}'\ntarget: '{{ answers.text[0] }}'\n"


@pytest.fixture
def auto(recipe_file):
    """Return a function that gives the draft of a recipe with method auto."""

    def read(*overrides, **settings):
        settings = {"method": "auto", "template": ENDING, "num_virtual_tokens": None} | settings
        return checked_draft(recipe_file(**settings), list(overrides))

    return read


def test_auto_is_a_prompt_that_other_engines_serve(auto):
    draft = auto()
    prompt = draft.prompt
    assert (prompt.method, prompt.init, prompt.trained_text) == ("prompt_tuning", "demonstrations", "ending")
    assert not prompt.layer_vectors and "a causal model is served by any engine, after export" in draft.choice
    assert "\n" not in draft.choice


def test_servable_false_adds_layer_vectors(auto):
    assert auto("--servable=false").prompt.layer_vectors and not auto("--servable=true").prompt.layer_vectors
    for flag in ("--servable=false", "--layer_vectors=true"):
        assert "served by vLLM with a plug-in, after export (Llama)" in auto(flag).choice


def test_auto_keeps_what_the_user_sets(auto):
    assert auto(num_virtual_tokens=6).prompt.init == "vocab"
    prompt = auto("--trained_text=none", "--init=text", "--init_text=Answer.").prompt
    assert (prompt.trained_text, prompt.init, prompt.init_text) == ("none", "text", "Answer.")
    prompt = auto("--residual=true", "--servable=false").prompt
    assert prompt.residual and prompt.trained_text == "none" and not prompt.layer_vectors


def test_a_template_without_an_ending_has_none_to_train(auto, tmp_path):
    template = tmp_path / "column_last.yaml"
    template.write_text(COLUMN_LAST, encoding="utf-8")
    assert auto(template=template).prompt.trained_text == "none"


def test_a_stream_has_no_rows_to_start_from(auto):
    assert auto("--streaming=true", "--max_steps=2").prompt.init == "vocab"


def test_the_saved_settings_are_those_of_the_choice(auto, recipe_file):
    settings = load_recipe(recipe_file(method="auto", template=ENDING, num_virtual_tokens=None)).resolved()
    assert settings["method"] == "prompt_tuning" and "servable" not in settings


def test_servable_belongs_to_auto(auto):
    with pytest.raises(RecipeError, match="servable has no effect with method prompt_tuning; it belongs to auto"):
        auto("--servable=true", method="prompt_tuning")


def test_an_adapter_has_a_method_already(auto, tmp_path):
    with pytest.raises(RecipeError, match="adapter"):
        auto(f"--adapter={tmp_path}")


def test_an_error_about_a_choice_of_auto_names_auto(recipe_file, tokenizer, tmp_path):
    config = FalconConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config.save_pretrained(tmp_path / "falcon")
    tokenizer.save_pretrained(tmp_path / "falcon")
    settings = {"model_name_or_path": tmp_path / "falcon", "template": ENDING, "num_virtual_tokens": None}

    def prepared(**changes):
        return prepare(load_recipe(recipe_file(**settings | {"method": "auto"} | changes)), ("train",))

    advice = "\nmethod auto chose trained_text: ending. Set trained_text in the recipe, and auto keeps it.$"
    with pytest.raises(ModelError, match=f"Set trained_text: none, or take one of .*{advice}"):
        prepared()
    with pytest.raises(ModelError, match="method auto chose layer_vectors: true"):
        prepared(servable="false")
    with pytest.raises(ModelError) as error:
        prepared(method="prompt_tuning", trained_text="ending")
    assert "auto" not in str(error.value)
    assert prepared(trained_text="none").trained_text is None
