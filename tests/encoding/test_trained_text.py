"""Trained text changes ids and no tokens: those tokens that lie wholly within a literal, the same in every row."""

import copy
from dataclasses import replace

import pytest
from datasets import Dataset
from helpers.models import tiny_sentencepiece
from helpers.rows import question_rows
from tokenizers import Tokenizer, decoders, models, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from prompt_tuning import Template
from prompt_tuning.encoding.control_tokens import ControlTokens
from prompt_tuning.encoding.dataset import encode
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.encoding.trained_text import TrainedText, check_fast
from prompt_tuning.errors import AdapterError, ModelError, TemplateError
from prompt_tuning.templates.literals import literals

LITERALS = ("\nQuestion: ", " (short)\nAnswer now:")
SOURCE = "{{ context }}" + LITERALS[0] + "{% soft %}{{ question }}" + LITERALS[1] + "{% endsoft %}"
TEMPLATE = Template(SOURCE, "{{ answers.text[0] }}")
ROWS = question_rows(12)
CHATS = {
    "as it is": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}<|assistant|>",
    "stripped": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<eos>{% endfor %}<|assistant|>\n",
    "user": "{% for m in messages %}<|user|>user {{ m.content | trim }}user{% endfor %}<|assistant|>",
}


@pytest.fixture(scope="module")
def tokenizers(tokenizer):
    trimmed = copy.deepcopy(tokenizer)
    trimmed.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return {
        "bytes": tokenizer,
        "trimmed": trimmed,
        "first": tiny_sentencepiece("first"),
        "always": tiny_sentencepiece("always"),
    }


def trained(encoder, part, rows=ROWS):
    """Return the encoder with the trained text of some training rows."""
    found = []
    for number, row in enumerate(rows):
        fitted, _ = encoder.fit_demonstrations(row)
        found.append((number, list(filter(None, fitted.text_tokens(fitted.cut_source(row), part)))))
    first_id = len(encoder.tokenizer)
    text = TrainedText.of_rows(part, literals(encoder.template, None, part), first_id, found, "row {}".format)
    return replace(encoder, trained_text=text)


def ends_of_pieces(tokenizer, ids):
    """Return where each token ends in the text, by the texts of the tokens alone."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    spaced = any("\u2581" in piece for piece in pieces)
    ends, end = [], -1 if spaced else 0  # The first space is the tokenizer's.
    for piece in pieces:
        end += len(piece)
        ends.append(end)
    return ends


@pytest.mark.parametrize("kind", ["bytes", "trimmed", "first", "always"])
@pytest.mark.parametrize("part", ["ending", "all", "marked"])
def test_the_tokens_within_literals_and_no_others_have_trained_ids(part, kind, tokenizers):
    tokenizer = tokenizers[kind]
    plain = Encoder(TEMPLATE, tokenizer)
    encoder = trained(plain, part)
    text = encoder.trained_text
    for row in ROWS:
        hard, soft = plain.row(row), encoder.row(row)
        assert text.ordinary_ids(soft["input_ids"]) == hard["input_ids"]
        assert {key: soft[key] for key in soft if key != "input_ids"} == {
            key: hard[key] for key in hard if key != "input_ids"
        }
        length = hard["labels"].count(-100)
        ids, hard_ids = soft["input_ids"][:length], hard["input_ids"][:length]
        first, last = len(row["context"]), len(row["context"] + LITERALS[0] + row["question"])
        spans = {(last, last + len(LITERALS[1])): LITERALS[1]}
        if part == "all":
            spans[first, first + len(LITERALS[0])] = LITERALS[0]
        expected = []
        start = 0
        for end in ends_of_pieces(tokenizer, hard_ids):
            expected.append(any(low <= max(start, 0) < end <= high for low, high in spans))
            start = end
        assert [id >= text.first_id for id in ids] == expected and sum(expected) >= 4
        assert not any(id >= text.first_id for id in soft["input_ids"][length:])
    assert len(set(text.start_ids)) > 3
    assert [TEMPLATE.source.count(literal) for literal in text.literals] == [1] * len(text.literals)


@pytest.mark.parametrize("kind", ["bytes", "first"])
def test_the_same_place_in_a_loop_a_demonstration_and_another_row_has_one_id(kind, tokenizers):
    template = Template(
        "Words:{% for word in words +%}\n-{{ word }}.{% endfor +%}\nAnswer:",
        "x",
        demonstrations=({"words": ["b"]},),
    )
    encoder = trained(Encoder(template, tokenizers[kind]), "all", [{"words": ["a", "b"]}, {"words": ["c"]}])
    text = encoder.trained_text

    def trained_ids(words):
        ids = [id - text.first_id for id in encoder.row({"words": words})["input_ids"]]
        # The first word has another token at the start of a text.
        return [id for id in ids if id >= 0 and text.tokens[id].literal > 0]

    # A demonstration of one word stands before every row.
    of_one = trained_ids("a")
    of_one, again = of_one[: len(of_one) // 2], of_one[len(of_one) // 2 :]
    length = sum(token.literal == 3 for token in text.tokens)
    item, ending = of_one[:-length], of_one[-length:]
    assert of_one == again and len(item) >= 2 and length >= 2
    assert trained_ids("bcd") == [*item, *ending, *item, *item, *item, *ending]
    # The ending is that of the row's own source.
    alone = trained(Encoder(template, tokenizers[kind]), "ending", [{"words": ["a"]}]).row({"words": "bc"})
    assert sum(id >= text.first_id for id in alone["input_ids"]) == length


@pytest.mark.parametrize("kind", ["bytes", "trimmed", "first"])
def test_a_row_with_the_text_of_a_control_token_or_of_many_bytes_has_the_same_trained_tokens(kind, tokenizers):
    template = Template("{{ context }}\n→ Für 日本 <eos> now:", "x")
    plain = Encoder(template, tokenizers[kind])
    encoder = trained(plain, "all", [{"context": "Ada."}])
    first_id = encoder.trained_text.first_id
    expected = [id for id in encoder.row({"context": "Ada."})["input_ids"] if id >= first_id]
    assert len(expected) > 5
    for context in ("<eos> Ada <|user|> Oslo.", "日本 → Für.", "<eos>.", "a<eos>b<eos>."):
        soft = encoder.row({"context": context})
        assert [id for id in soft["input_ids"] if id >= first_id] == expected
        hard = plain.row({"context": context})
        assert encoder.trained_text.ordinary_ids(soft["input_ids"]) == hard["input_ids"]
        assert soft["labels"] == hard["labels"] and soft["source"] == hard["source"]


@pytest.mark.parametrize("part", ["ending", "all"])
def test_a_character_of_two_equal_bytes_is_saved_and_read_again(part, tokenizer):
    row = {"word": "tsu"}
    plain = Encoder(Template("{{ word }}\nッ:", "x"), tokenizer)
    encoder = trained(plain, part, [row])
    text = encoder.trained_text
    ids = plain.source(row).ids
    assert ids[-2] == ids[-3]
    assert TrainedText.from_json(text.to_json(), text.start_ids, text.first_id, "run") == text
    soft = encoder.source(row).ids
    assert text.ordinary_ids(soft) == ids
    # Each trained token is in the row.
    assert {id for id in soft if id >= text.first_id} == {*range(text.first_id, text.first_id + len(text.tokens))}


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("part", ["ending", "all"])
def test_in_a_chat_only_the_templates_own_words_are_trained(part, chat, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHATS[chat]
    row = {"context": " user ", "question": "user"}
    template = Template(
        "{{ context }} user\nQuestion user: {{ question }}\nuser:\n\n", "x", chat=True, system=" user {{ question }}!",
        demonstrations=({"context": "a", "question": "b"},),
    )  # fmt: skip
    plain = Encoder(template, tokenizer)
    encoder = trained(plain, part, [row])
    text = encoder.trained_text
    soft, hard = encoder.row(row), plain.row(row)
    assert text.ordinary_ids(soft["input_ids"]) == hard["input_ids"] and soft["labels"] == hard["labels"]
    words = []
    for id in soft["input_ids"]:
        trained_id = id >= text.first_id
        words.append(f"[{tokenizer.decode(text.ordinary_ids([id]))}]" if trained_id else tokenizer.decode([id]))
    written = "".join(words).replace("][", "")
    ending = "\nuser:\n" if chat == "as it is" else "\nuser:"
    assert f"[{ending}]" in written and written.count("[") == (1 if part == "ending" else 6)
    if part == "all":
        system = "[ user ]" if chat == "as it is" else "[user ]"
        assert f"{system}user[!]" in written and f"[ user\nQuestion user:] b[{ending}]" in written
        assert f"[ user\nQuestion user: ]user[{ending}]" in written


def test_a_chat_template_that_changes_messages_by_what_they_say_is_refused(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<|user|>{{ m.content }}{% if m.content[-1] == ':' %} {% endif %}{% endfor %}"
    )
    encoder = Encoder(Template("{{ question }}\nAnswer:", "x", chat=True), tokenizer)
    with pytest.raises(TemplateError, match="changes messages by what they say"):
        trained(encoder, "ending")


@pytest.fixture(scope="module")
def joining():
    """Return a tokenizer that joins a question mark and the line break after it, and else a line break and an o."""
    characters = sorted({*"abcdefghijklmnopqrstuvwxyz?.:\n "})
    merges = [("?", "\n"), ("\n", "o"), ("o", "k")]
    vocab = {token: id for id, token in enumerate([*characters, "<eos>", *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def test_a_token_that_spans_a_column_stays_ordinary_and_one_that_training_has_not_is_counted(joining):
    template = Template("{{ a }}\nok:", "x")
    rows = [{"a": "b?"}, {"a": "b."}]
    plain = Encoder(template, joining)
    tokens = [joining.convert_ids_to_tokens(plain.source(row).ids) for row in rows]
    assert tokens == [["b", "?\n", "ok", ":"], ["b", ".", "\no", "k", ":"]]
    # The longest run that ends both is the colon.
    ending = trained(plain, "ending", rows)
    assert joining.convert_ids_to_tokens(ending.trained_text.start_ids) == [":"]
    assert [ending.row(row)["untrained_tokens"] for row in rows] == [0, 0]
    # A row that does not end in the run that was trained is refused.
    of_second = trained(plain, "ending", rows[1:])
    assert joining.convert_ids_to_tokens(of_second.trained_text.start_ids) == ["\no", "k", ":"]
    with pytest.raises(TemplateError, match="the source does not end with the 3 tokens of the trained ending"):
        of_second.row(rows[0])
    # In `all` its own token stays ordinary.
    of_all = trained(plain, "all", rows[1:])
    soft = of_all.row(rows[0])
    first_id = of_all.trained_text.first_id
    assert [id >= first_id for id in soft["input_ids"]][:4] == [False, False, False, True]
    assert soft["untrained_tokens"] == 1
    encoded, report = encode(Dataset.from_list([*rows, *rows[:1]]), of_all)
    assert (report.untrained_rows, report.untrained_tokens) == (2, 2)
    assert "2 with 2 tokens of the trained text that no training row has" in str(report)
    assert of_all.trained_text.ordinary_rows(encoded)["input_ids"][0] == plain.row(rows[0])["input_ids"]
    # The tokens of both merges are trained if training rows have both.
    assert trained(plain, "all", rows).row(rows[0])["untrained_tokens"] == 0


def test_rows_that_share_no_ending_are_refused_by_the_number_of_the_row(joining):
    with pytest.raises(TemplateError, match="row 1 does not end with the last token"):
        trained(Encoder(Template("{{ a }}\n\n", "x"), joining), "ending", [{"a": "b"}, {"a": "b?"}])


def test_choices_after_trained_text_have_the_tokens_that_they_have_after_the_hard_prompt(tokenizers, monkeypatch):
    # The tokens of a target are read after the whole source, not by themselves.
    monkeypatch.delattr(ControlTokens, "continuation")
    template = Template("{{ question }}\nAnswer:", "{{ label }}", answer_choices="yes ||| no")
    for tokenizer in tokenizers.values():
        plain = Encoder(template, tokenizer)
        row = {"question": "Is it?", "label": "no"}
        for key in ("choices", "choice_ids", "labels"):
            assert trained(plain, "all", [row]).row(row)[key] == plain.row(row)[key]


def test_saved_trained_text_is_read_again_and_refused_with_another_template(tokenizer):
    text = trained(Encoder(TEMPLATE, tokenizer), "all").trained_text
    again = TrainedText.from_json(text.to_json(), text.start_ids, text.first_id, "run")
    assert again == text
    again.check_template(Template(SOURCE + "{# a comment #}", "{{ other }}"), None, "run")
    for source in (SOURCE.replace("now", "here"), SOURCE + "!", "{{ context }}"):
        with pytest.raises((AdapterError, TemplateError)):
            again.check_template(Template(source, "x"), None, "run")
    with pytest.raises(AdapterError, match=r"run: it was trained on .*Answer now.* other has '' there"):
        again.check_template(Template("{{ a }}" + LITERALS[0] + "{{ b }}", "x", name="other"), None, "run")


@pytest.mark.parametrize(
    "change",
    [
        {"part": "none"},
        {"literals": []},
        {"literals": "abc"},
        {"tokens": []},
        {"tokens": [[0, 0, 1]]},
        {"tokens": [[0, 1]] * 2},
        {"tokens": [[0, 0, 99], [0, 1, 2]]},
        {"tokens": [[0, 1, 1], [0, 1, 2]]},
        {"tokens": [[5, 0, 1], [0, 1, 2]]},
        {"tokens": [[0, 0, 1.0], [0, 1, 2]]},
        {"tokens": None},
    ],
)
def test_damaged_trained_text_is_refused(change):
    good = {"part": "all", "literals": ["\nok"], "tokens": [[0, 0, 1], [0, 1, 3]]}
    assert TrainedText.from_json(good, [3, 4], 9, "run").start_ids == [3, 4]
    with pytest.raises(AdapterError, match="run: trained_text"):
        TrainedText.from_json(good | change, [3, 4], 9, "run")
    for ids in ([3], [3, 9], [3, 4, 5]):
        with pytest.raises(AdapterError, match="run: trained_text"):
            TrainedText.from_json(good, ids, 9, "run")


def test_a_slow_tokenizer_is_refused_by_name():
    with pytest.raises(ModelError, match="ByT5Tokenizer is slow"):
        check_fast(ByT5Tokenizer())


@pytest.mark.parametrize(("single", "before"), [("$A <eos>", 0), ("$A <eos> <bos>", 0), ("<bos> $A <eos>", 1)])
@pytest.mark.parametrize("part", ["ending", "all"])
def test_the_end_and_language_tokens_around_a_source_of_an_encoder_are_not_trained(part, single, before):
    tokenizer = tiny_sentencepiece("first")
    causal = trained(Encoder(TEMPLATE, copy.deepcopy(tokenizer)), part)
    alone = tokenizer("x").input_ids
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<eos>", "<bos>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    added = len(tokenizer("x").input_ids) - len(alone)
    plain = Encoder(TEMPLATE, tokenizer, is_encoder_decoder=True)
    encoder = trained(plain, part)
    assert encoder.trained_text.tokens == causal.trained_text.tokens
    for row in ROWS:
        hard, soft = plain.row(row), encoder.row(row)
        assert encoder.trained_text.ordinary_ids(soft["input_ids"]) == hard["input_ids"]
        assert soft["labels"] == hard["labels"]
        source = causal.source(row).ids
        assert soft["input_ids"][before : before + len(source)] == source
        assert len(soft["input_ids"]) == len(source) + added
