"""Rows in chat templates have the tokens that the chat template writes, and every failure of one is a clean error."""

import copy

import pytest
from helpers.models import tiny_llama, tiny_sentencepiece
from helpers.rows import question_rows

from prompt_tuning.arguments.model_args import ModelArguments
from prompt_tuning.encoding.chat import answer_ends
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.engine.stop_texts import add_end_tokens
from prompt_tuning.errors import RecipeError, TemplateError
from prompt_tuning.models.loading import load_tokenizer
from prompt_tuning.templates.template import Template

ROW = question_rows(1)[0]
CHAT = Template(
    "{{ question }}",
    "{{ answers.text[0] }}",
    chat=True,
    demonstrations=({"question": "Where?", "answers": {"text": ["Rome"]}},),
)
SYSTEM = Template("{{ question }}", "{{ answers.text[0] }}", system="Name a town.", chat=True)

# In the manner of the models that they are named by. <end> ends a turn.
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' ~ messages[0].content ~ '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}{{ '<bos>[INST] ' ~ (system if loop.first else '') ~ m.content }}"
    " [/INST]"
    "{% else %}{{ ' ' ~ m.content ~ ' <eos>' }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "<bos>{% for m in messages %}{{ '<open>' ~ m.role ~ '<close>\n\n' ~ m.content | trim ~ '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<open>assistant<close>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<open>' ~ m.role ~ '\n' ~ m.content ~ '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<open>assistant\n' }}{% endif %}"
)
GEMMA = (
    "<bos>{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<open>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' ~ m.content | trim ~ "
    "'<end>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<open>model\n' }}{% endif %}"
)
MISTRAL = (
    "<bos>{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' ~ m.content ~ ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ m.content ~ '<eos>' }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}{{ '<open>' ~ m.role ~ '<close>\n' ~ m.content ~ '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<open>assistant<close>\n' }}{% else %}<eos>{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<open>' ~ m.role ~ '\n' ~ m.content ~ '<eos>' }}\n"
    "{% if loop.last and add_generation_prompt %}{{ '<open>assistant' }}{% endif %}{% endfor %}"
)
QWEN = (
    "{% for m in messages %}{{ '<open>' ~ m.role ~ '\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content ~ '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<open>assistant\n' }}{% endif %}"
)
DEEPSEEK = (
    "<bos>{% for m in messages %}{% if m.role == 'assistant' %}{{ '<open>' ~ m.content ~ '<eos>' }}"
    "{% else %}{{ '<close>' ~ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<open><think>\n' }}{% endif %}"
)
COMMAND_R = (
    "<bos>{% for m in messages %}{{ '<open><' ~ m.role ~ '>' ~ m.content | trim ~ '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<open><assistant>' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' ~ m.content }}{% else %}"
    "{{ ' ASSISTANT: ' ~ m.content ~ '<eos>' }}{% endif %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}<open>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}<end>{% endfor %}{% if add_generation_prompt %}<open>assistant\n{% endif %}"
)
TEMPLATES = {
    "llama 2": LLAMA_2, "llama 3": LLAMA_3, "chatml": CHATML, "gemma": GEMMA, "mistral": MISTRAL, "phi": PHI,
    "zephyr": ZEPHYR, "qwen": QWEN, "deepseek": DEEPSEEK, "command-r": COMMAND_R, "vicuna": VICUNA, "parts": PARTS,
}  # fmt: skip

FAILS = "fails on a question and its answer: "


@pytest.fixture(scope="module")
def chat_tokenizers(tokenizer):
    """Return a byte-level tokenizer and one that puts a space before a text, each with the tokens of the templates."""
    tokens = ["<open>", "<close>", "<end>"]
    tokenizers = {"bytes": copy.deepcopy(tokenizer), "sentencepiece": tiny_sentencepiece()}
    for each in tokenizers.values():
        each.add_special_tokens({"extra_special_tokens": [*tokens, "<bos>"]})
        each.add_tokens(["<think>", "</think>"])
    return tokenizers


def with_chat(tokenizer, chat_template, name=""):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = chat_template
    changed.name_or_path = name
    return changed


def conversation(template, row, *, parts=False):
    rendered = template.render(row)
    messages = [*rendered.messages, {"role": "assistant", "content": rendered.target}]
    if parts:
        messages = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]
    return messages


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_row_has_the_tokens_that_the_chat_template_writes_with_the_answer(name, kind, chat_tokenizers):
    tokenizer = with_chat(chat_tokenizers[kind], TEMPLATES[name])
    for template in (CHAT,) if name in ("gemma", "mistral", "vicuna") else (CHAT, SYSTEM):
        row = Encoder(template, tokenizer).row(ROW)
        messages = conversation(template, ROW, parts=name == "parts")
        expected = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
        assert row["input_ids"] == expected[: len(row["input_ids"])]
        end = row["labels"][-1]
        assert end in answer_ends(tokenizer) and tokenizer.decode(end) == (
            "<end>" if "<end>" in TEMPLATES[name] else "<eos>"
        )
        after = tokenizer.decode(expected[len(row["input_ids"]) :])
        assert after.replace("<eos>", "").strip() == "", "the first end token is the last of the row"
        labels = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(labels, skip_special_tokens=True).strip() == "Turin"


def test_generation_ends_where_the_chat_template_ends_an_answer(chat_tokenizers):
    tokenizer = with_chat(chat_tokenizers["bytes"], CHATML)
    model = tiny_llama(len(tokenizer))
    model.generation_config.eos_token_id = 7
    add_end_tokens(model, tokenizer)
    ends = model.generation_config.eos_token_id
    assert ends == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end>"), 7]
    tokenizer.chat_template = "{{ 1 // 0 }}"
    add_end_tokens(model, tokenizer)
    assert model.generation_config.eos_token_id == ends


def test_choices_are_scored_without_what_follows_an_answer(chat_tokenizers):
    template = Template("{{ question }}", "yes", chat=True, answer_choices="yes ||| no")
    for chat_template in (LLAMA_2, CHATML):
        tokenizer = with_chat(chat_tokenizers["sentencepiece"], chat_template)
        row = Encoder(template, tokenizer).row(ROW)
        assert [tokenizer.decode(ids).strip() for ids in row["choice_ids"]] == ["yes", "no"]
        assert row["choice_ids"][0] == [label for label in row["labels"] if label != -100][: len(row["choice_ids"][0])]
        assert tokenizer.convert_ids_to_tokens(row["choice_ids"][0][-1]) != "\u2581"


@pytest.mark.parametrize(
    ("chat_template", "template", "message"),
    [
        (GEMMA, SYSTEM, "takes no system message: System role not supported. Put its words into source"),
        (MISTRAL, SYSTEM, "leaves out or changes the text of a system message. Put its words into source"),
        ("{{ messages[0].content + 1 }}", CHAT, f'{FAILS}can only concatenate str (not "int") to str'),
        ("{{ messages.nothing.at_all }}", CHAT, f"{FAILS}'list object' has no attribute 'nothing'"),
        ("{{ 1 // 0 }}", CHAT, f"{FAILS}integer division"),
        ("{% for", CHAT, f"{FAILS}unexpected 'end of template'"),
        ("{{ bos_token }}", CHAT, f"{FAILS}it does not write them"),
        (CHATML + "{{ raise_exception('two') if messages | length > 2 }}", CHAT, "(user, assistant, user): two"),
        (CHATML.replace("m.content", "m.content[:9]"), CHAT, f"{FAILS}it does not write them"),
        (CHATML.replace("m.content", "m.content[:19]"), CHAT, "leaves out or changes the text of a user message"),
        ({"rag": CHATML, "tool_use": CHATML}, CHAT, "with no default specified"),
    ],
)
def test_a_chat_template_that_fails_is_an_error_with_the_names_of_template_and_tokenizer(
    chat_template, template, message, chat_tokenizers
):
    tokenizer = with_chat(chat_tokenizers["bytes"], chat_template, name="some/model")
    with pytest.raises(TemplateError) as caught:
        Encoder(template, tokenizer).row(ROW)
    assert message in str(caught.value)
    assert str(caught.value).startswith("template inline: ") and "some/model" in str(caught.value)


def test_a_recipe_names_one_of_several_chat_templates(chat_tokenizers, tmp_path):
    templates = {"default": CHATML, "rag": LLAMA_3}
    with_chat(chat_tokenizers["bytes"], templates).save_pretrained(tmp_path / "several")
    chosen = load_tokenizer(ModelArguments(str(tmp_path / "several"), chat_template="rag"))
    expected = Encoder(SYSTEM, with_chat(chat_tokenizers["bytes"], LLAMA_3)).row(ROW)
    assert Encoder(SYSTEM, chosen).row(ROW) == expected
    chosen.save_pretrained(tmp_path / "again")  # A fully trained model is saved with its tokenizer.
    again = load_tokenizer(ModelArguments(str(tmp_path / "again"), chat_template="rag"))
    assert Encoder(SYSTEM, again).row(ROW) == expected
    with pytest.raises(RecipeError, match=r"chat_template rags: the tokenizer has default, rag. Name one"):
        load_tokenizer(ModelArguments(str(tmp_path / "several"), chat_template="rags"))
    chat_tokenizers["bytes"].save_pretrained(tmp_path / "one")
    with pytest.raises(RecipeError, match="the tokenizer has no chat templates with names"):
        load_tokenizer(ModelArguments(str(tmp_path / "one"), chat_template="rag"))


@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize("end", ["Answer: ", "Answer:\n", "Answer:", "(", "Answer:  "])
def test_a_target_continues_the_tokens_of_its_source_without_a_space_of_its_own(scheme, end):
    tokenizer = tiny_sentencepiece(scheme)
    template = Template("{{ question }} " + end.replace("\n", "{{ '\n' }}"), "{{ answers.text[0] }}")
    encoder = Encoder(template, tokenizer)
    row = encoder.row(ROW)
    source = encoder.source(ROW)
    assert row["input_ids"][: len(source.ids)] == source.ids
    gap = "" if end[-1].isspace() else " "
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == source.text + gap + "Turin"
