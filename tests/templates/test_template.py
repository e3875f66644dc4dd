"""Hard prompts: their columns are read from the template, and a row cannot change their work."""

import random

import jinja2
import pytest
import yaml
from helpers.paths import ROOT

from prompt_tuning.errors import TemplateError
from prompt_tuning.metrics.loading import MAIN_METRIC
from prompt_tuning.templates.languages import LANGUAGES, language_variables
from prompt_tuning.templates.loading import shipped_templates
from prompt_tuning.templates.sandbox import VALUE_END
from prompt_tuning.templates.template import Template, load_templates

FRENCH = language_variables("fr", "en")
ROW = {
    "context": "Ada lives in Turin.",
    "question": "Where does Ada live?",
    "answers": {"text": ["Turin", "in Turin"], "answer_start": [13, 10]},
    "choices": ["Oslo", "Turin"],
    "document": "A long story about Ada.",
    "summary": "Ada.",
    "translation": {"fr": "Bonjour.", "en": "Good morning."},
    "messages": [{"role": "user", "content": "Where is Ada?"}, {"role": "assistant", "content": "In Turin."}],
}


@pytest.mark.parametrize("name", shipped_templates())
def test_shipped_templates_render_and_survive_being_saved(name):
    template = Template.load(name)
    rendered = template.render(ROW, FRENCH)
    target = {
        "question_answering": "Turin",
        "summarization": "Ada.",
        "translation": "Good morning.",
        "conversation": "In Turin.",
    }[name.split("/")[0]]
    assert rendered.target == target and target in rendered.references
    if "choices" not in template.columns:  # Choices show the target among others.
        assert target not in rendered.source.replace(ROW["context"], "").replace(ROW["document"], "")
    assert Template.from_dict(yaml.safe_load(template.to_yaml()), name) == template


@pytest.mark.parametrize("task", MAIN_METRIC)
def test_each_task_has_ten_templates_and_every_kind_in_short_and_long_wordings(task):
    templates = {name: Template.load(name) for name in shipped_templates() if name.startswith(f"{task}/")}
    written = {str(template.render(ROW, FRENCH).messages) for template in templates.values()}
    assert len(written) == len(templates) >= 10
    kinds = ("plain", "instruction", "instruction_short", "instruction_long", "chat", "chat_short", "chat_long")
    for kind in (*kinds, "few_shot", "few_shot_instruction", "few_shot_chat"):
        template = templates[f"{task}/{kind}"]
        assert template.chat == ("chat" in kind) and bool(template.demonstrations) == kind.startswith("few_shot")
    for kind in ("instruction", "chat"):
        short, usual, long = (
            len(template.render(ROW, FRENCH, with_target=False).source)
            for template in (templates[f"{task}/{kind}{length}"] for length in ("_short", "", "_long"))
        )
        assert short <= usual < long


def test_translation_templates_name_languages_by_name_or_code():
    assert "fr: Bonjour.\nen:" in Template.load("translation/plain_codes").render(ROW, FRENCH).source
    assert "French: Bonjour.\nEnglish:" in Template.load("translation/plain").render(ROW, FRENCH).source
    languages = set(Template.load("translation/few_shot").demonstrations[0]["translation"])
    assert {"en", "de", "fr", "zh", "ja", "ru"} <= languages <= set(LANGUAGES)
    for shown in Template.load("translation/few_shot").demonstrations:
        assert set(shown["translation"]) == languages and all(shown["translation"].values())
    with pytest.raises(TemplateError, match="in its demonstration 1; a file of your own may show others"):
        Template.load("translation/few_shot").render(
            {"translation": {"is": "a", "en": "b"}}, language_variables("is", "en")
        )


def test_a_file_of_several_and_a_folder_of_files_load_by_name(tmp_path):
    one, several = tmp_path / "one.yaml", tmp_path / "deeper" / "several.yml"
    several.parent.mkdir()
    one.write_text("source: '{{ question }}'\ntarget: '{{ answers.text[0] }}'\n")
    several.write_text("a: {source: '{{ context }}', target: x}\n'b c': {source: '{{', target: x}\n")
    (tmp_path / "recipe.yaml").write_text("task: translation\n")
    assert Template.load(one).name == str(one)
    assert Template.load(f"{several}:a").source_columns == {"context"}
    templates, unreadable = load_templates(tmp_path)
    assert templates == {str(one): Template.load(one), f"{several}:a": Template.load(f"{several}:a")}
    assert unreadable.keys() == {f"{several}:b c", str(tmp_path / "recipe.yaml")}
    assert "unexpected 'end of template'" in unreadable[f"{several}:b c"]
    assert "expected the fields source and target, found 'task" in unreadable[str(tmp_path / "recipe.yaml")]
    with pytest.raises(TemplateError, match="unexpected 'end of template'"):
        Template.load(f"{several}:b c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TemplateError, match=r"no \.yaml file in this folder"):
        load_templates(tmp_path / "empty")
    assert list(load_templates("translation/plain")[0]) == ["translation/plain"]
    assert set(load_templates()[0]) == set(shipped_templates())


def test_a_closed_question_has_choices_that_a_row_fills():
    template = Template(
        source="{{ question }} {{ answer_choices | join(' or ') }}?",
        target="{{ answer_choices[label] }}",
        answer_choices="{{ first }} ||| {{ second }}",
    )
    row = {"question": "Which?", "first": "a ||| b", "second": "c", "label": 1}
    assert template.source_columns == {"question", "first", "second"}
    assert template.columns == template.source_columns | {"label"}
    assert template.choices(row) == ["a ||| b", "c"]
    assert template.render(row).source == "Which? a ||| b or c?" and template.render(row).target == "c"
    assert Template.from_dict(yaml.safe_load(template.to_yaml())) == template
    assert Template.load("question_answering/plain").choices(ROW) == []


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        ("{% if a %}{% set w = b %}{{ w }}{% endif %}", {"a", "b"}),
        ("{% if a %}{% set w = 1 %}{% endif %}{{ w }}", {"a", "w"}),
        (
            "{% if a %}{% set w = 1 %}{% elif c %}{% set w = 2 %}{% else %}{% set w=3 %}{% endif %}{{ w }}",
            {"a", "c"},
        ),
        ("{% filter trim %}{% if a %}{{ w }}{% set w = 1 %}{% endif %}{% endfilter %}", {"a", "w"}),
        ("{% macro m(x) %}{{ x }}{{ y }}{% endmacro %}{{ m(1) }}{% set w %}b{% endset %}{{ w }}", {"y"}),
        ("{% for x in xs %}{{ loop.index }}{{ x }}{% endfor %}{{ x }}", {"x", "xs"}),
        ("{% for x in xs %}{% if x %}{% set w = x %}{{ w }}{% endif %}{% endfor %}", {"xs"}),
        ("{% for a, b in xs if a != c %}{{ a ~ b }}{% else %}{{ a }}{% endfor %}", {"a", "c", "xs"}),
        ("{% filter replace('a', b) %}{{ c }}{% endfilter %}", {"b", "c"}),
        ("Code {{ zip }}{% for x in range(3) %}{{ dict(a=x) }}{% endfor %}", {"zip"}),
    ],
)
def test_a_variable_that_a_template_sets_is_not_a_column(source, columns):
    assert Template(source=source, target="x").columns == columns


def test_a_column_may_have_the_name_of_a_function_of_jinja():
    template = Template.from_dict({"source": "{{ zip }}: {{ q }}", "target": "{{ a }}"})
    assert template.columns == {"zip", "q", "a"}
    assert template.render({"zip": "10002", "q": "b", "a": "c"}).source == "10002: b"
    with pytest.raises(TemplateError, match="needs the column 'zip'"):
        template.check_columns(["q", "a"], "the row")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ ['a', 'b']|random }}", "No filter named 'random'"),
        ("{% for a in b %}" * 25 + "{% endfor %}" * 25, "too many statically nested blocks"),
    ],
)
def test_random_filters_and_deep_templates_are_refused_when_loaded(source, message):
    with pytest.raises(TemplateError, match=message):
        Template.from_dict({"source": source, "target": "x"})


@pytest.mark.parametrize("line", ["made: 2023-02-30", "target: 0x_", "target: !!bool maybe", "target: !!timestamp x"])
def test_an_invalid_date_or_number_is_refused_with_its_line(tmp_path, line):
    (tmp_path / "mine.yaml").write_text(f"source: a\n{line}\n")
    with pytest.raises(TemplateError, match=r"mine.yaml, line 2: .*\. Put the value in quotes"):
        Template.load(tmp_path / "mine.yaml")


def test_columns_are_read_from_the_template_without_a_row():
    template = Template.load("question_answering/plain")
    assert template.source_columns == {"context", "question"}
    assert template.columns == {"context", "question", "answers"}
    assert Template.load("translation/instruction").columns == {"translation"}  # Languages are settings.


def test_data_without_a_column_is_refused_with_template_and_data_named():
    with pytest.raises(TemplateError) as caught:
        Template.load("summarization/plain").check_columns(["dialogue", "summary"], "train.jsonl")
    message = str(caught.value)
    assert "needs the column 'document'" in message and "train.jsonl has 'dialogue', 'summary'" in message
    assert "--text_column" in message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ context.__init__.__globals__ }}",
        "{{ answers.update({'text': []}) }}",
        "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_templates_run_in_a_sandbox(source):
    with pytest.raises(TemplateError):
        Template(source=source, target="x").render(ROW)


def test_a_row_cannot_smuggle_a_template_in():
    row = ROW | {"context": "{{ 7 * 7 }}"}
    assert "{{ 7 * 7 }}" in Template.load("question_answering/plain").render(row).source


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answers": None}, "'null object' has no attribute 'text'"),
        ({"answers": {"text": [""]}}, "the target is empty"),
        ({"question": None}, "a value it prints is null"),
    ],
)
def test_a_row_without_an_answer_is_an_error(row, message):
    with pytest.raises(TemplateError, match=message):
        Template.load("question_answering/plain").render(ROW | row)


@pytest.mark.parametrize("source", ["{{ 'Q: ' ~ q }}", "{{ q | trim }}", "{{ [q, 'a'] | join(' ||| ') }}"])
def test_no_filter_makes_a_word_of_a_null(source):
    template = Template.from_dict({"source": source, "target": "x"})
    assert "Turin" in template.render({"q": "Turin"}).source
    with pytest.raises(TemplateError, match="a value it prints is null"):
        template.render({"q": None})


def test_branches_tests_and_json_take_a_null_for_none():
    source = (
        "{{ 'z' if q is sameas none }}{{ 'a' if q is none }}{{ 'b' if q == none }}{{ 'c' if not q }}"
        "{{ 'd' if q is not string }}{{ q | default('e', true) }}{{ q or 'f' }}{{ [q, 'g'] | select | join }}"
        "{{ {'k': q} | tojson }}"
    )
    assert Template(source, "x").render({"q": None}).source == 'zabcdefg{"k": null}'


def test_plain_scalars_of_a_file_stay_as_they_are_written(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "source: '{{ q }} {{ no }}'\ntarget: '{{ a }}'\nanswer_choices: yes ||| no\ndemonstrations:\n"
        "- {q: 12:30, a: yes, no: 1.10}\n- {q: =, a: no, no: True}\n"
        "- {q: 0010, a: no, no: 2024-05-01}\n- {q: 7, a: no, no: 1.5}\n"
    )
    template = Template.load(tmp_path / "mine.yaml")
    (tmp_path / "again.yaml").write_text(template.to_yaml())
    for loaded in (template, Template.load(tmp_path / "again.yaml")):
        assert [message["content"] for message in loaded.render({"q": "x", "no": "y", "a": "z"}).messages] == [
            "12:30 1.10", "yes", "= True", "no", "0010 2024-05-01", "no", "7 1.5", "no", "x y"
        ]  # fmt: skip


def test_unanswerable_questions_have_a_target_and_no_references():
    rendered = Template.load("question_answering/unanswerable").render(ROW | {"answers": {"text": []}})
    assert rendered.target == "unanswerable" and rendered.references == ()


def test_demonstrations_and_system_come_before_the_source():
    template = Template(
        source="Q: {{ question }}", target="{{ answers.text[0] }}", system="Be brief.",
        demonstrations=({"question": "Where is Oslo?", "answers": {"text": ["Norway"]}},),
    )  # fmt: skip
    rendered = template.render(ROW)
    assert [message["role"] for message in rendered.messages] == ["system", "user", "assistant", "user"]
    assert rendered.source == "Be brief.\n\nQ: Where is Oslo? Norway\n\nQ: Where does Ada live?"
    assert template.columns == {"question", "answers"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("source: a", "expected the fields source and target, found 'source'"),
        ("source: a\ntarget: b\nstops: [x]", "unknown field stops"),
        ("source: '{{ a'\ntarget: b", "unexpected end of template"),
        ("source: a\ntarget: b\nreferences: '[['", "template"),
        ("source: [", "not YAML"),
        (
            "source: !!python/object/apply:os.system ['true']\ntarget: b",
            "line 1: tag !!python/object/apply:os",
        ),
        ("source: a\ntarget: !!binary aGk=", "line 2: tag !!binary"),
        ("source: a\ntarget: b\nsource: c", "line 3: source was set on line 1 already"),
        ("source: a\ntarget: b\nanswer_choices: true", "expected text as answer_choices, found bool"),
        ("source: a\ntarget: b\nstop: END", "expected a list of texts as stop, found 'END'"),
        ("source: a\ntarget: b\nstop: ['']", "expected a list of texts as stop, found ['']"),
        ("source: a\ntarget: b\nstop: 5", "expected a list of texts as stop"),
        ("source: a\ntarget: b\ndemonstrations: [abc]", "expected a list of rows as demonstrations"),
        ("source: '{{ a }}'\ntarget: b\ntruncate: [b]", "truncate names 'b', and its source reads 'a'"),
        ("source: a\ntarget: b\nchat: 'false'", "expected true or false as chat, found 'false'. Write it"),
        ("source: a\ntarget: b\nchat: yes", "expected true or false as chat, found 'yes'"),
        ("source: a\ntarget: b\n1: c\nfoo: d", "unknown field 1"),
        (f"a: {'[' * 2000}", "too deep to read"),
        ("{a: {source: a, target: b}, b: {source: c, target: d}}", "the file holds 2 ('a', 'b'). Name one, such as"),
    ],
)
def test_a_broken_template_file_is_named_with_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(TemplateError, match=r"mine.yaml") as caught:
        Template.load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ("answers.text", "references holds null, which is not a text"),
        ("answers", "references holds a list, which is not a text"),
        ("[1 // nothing]", "references: integer division"),
    ],
)
def test_references_that_are_not_texts_are_an_error(references, message):
    row = {"answers": {"text": ["Turin", None]}, "nothing": 0}
    with pytest.raises(TemplateError) as caught:
        Template("{{ nothing }}", "{{ answers.text[0] }}", references).render(row)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "source", ["{{ question|dictsort }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}{{ question }}"]
)
def test_mistakes_that_only_a_row_shows_name_the_template(source):
    with pytest.raises(TemplateError, match="template inline: "):
        Template(source, "a").render(ROW)


def test_any_text_survives_being_saved():
    """Include U+0085, a line break to YAML; latin-1 reads it for the ellipsis of cp1252."""
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("ab \n\r\t\x85\u2028\ufeff\xa0:#-'\"|>\\{}", k=9))
        template = Template("x", "y", demonstrations=({"question": text},))
        assert Template.from_dict(yaml.safe_load(template.to_yaml())) == template


def test_a_template_with_an_empty_source_survives_being_saved():
    template = Template("", "{{ a }}", system="Say {{ q }}.")
    assert Template.from_dict(yaml.safe_load(template.to_yaml())) == template


def test_a_column_may_have_any_name():
    assert Template("{{ q }}", "{{ a }}", "[a]").render({"q": "b", "a": "c", "self": "d"}).references == ("c",)


def test_unknown_names_get_the_nearest(tmp_path):
    with pytest.raises(TemplateError, match="Did you mean question_answering/plain"):
        Template.load("question_answering/plane")
    with pytest.raises(TemplateError, match="no such file"):
        Template.load(tmp_path / "none.yaml")
    (tmp_path / "one.yaml").write_text("source: a\ntarget: b")
    with pytest.raises(TemplateError, match="Name one, such as ") as caught:
        Template.load(f"{tmp_path / 'one.yaml'}:short")
    Template.load(str(caught.value).partition("Name one, such as ")[2])  # The advice works.


def test_languages_have_names_and_the_name_of_an_unknown_code_is_the_code():
    assert (
        FRENCH["source_language"] == "French" and language_variables("xx", "pt_BR")["target_language"] == "Portuguese"
    )
    assert language_variables("xx", None) == dict.fromkeys(
        ("source_lang", "source_language", "source_language_zh"), "xx"
    )
    assert language_variables("fr", "zh_Hans")["source_language_zh"] == "法文"
    named = [language_variables(code, None)["source_language"] for code in ("fra_Latn", "zho_Hans", "deu", "bul_Cyrl")]
    assert named == ["French", "Chinese", "German", "Bulgarian"]


@pytest.mark.parametrize(("truth", "word"), [(True, "yes"), (False, "no")])
def test_boolq_as_the_hub_has_it_reads_like_files_with_squads_columns(truth, word):
    theirs = Template.load(str(ROOT / "recipes" / "question_answering" / "templates" / "boolq.yaml"))
    usual = Template.load("question_answering/yes_no")
    row = {"question": "is the mill old", "passage": "The mill was built in 1650.", "answer": truth}
    same = {"question": row["question"], "context": row["passage"], "answers": {"text": [word], "answer_start": [-1]}}
    assert theirs.render(row) == usual.render(same) and theirs.render(row).target == word
    assert theirs.choices(row) == usual.choices(same) == ["yes", "no"]


ODD = {"passage-text": "Ada lives in Turin.", "the question": "Where?", "2nd": "x", "answers": {"text": ["Turin"]}}


def test_columns_whose_names_are_not_words_are_items_of_row():
    template = Template.from_dict(
        {
            "source": "{{ row['passage-text'] }} {{ row['the question'] }} {{ row['2nd'] }}",
            "target": "{{ row.answers.text[0] }}",
            "truncate": ["passage-text"],
        }
    )
    assert template.source_columns == {"passage-text", "the question", "2nd"}
    assert template.columns == template.source_columns | {"answers"}
    rendered = template.render(ODD)
    assert rendered.source == "Ada lives in Turin. Where? x" and rendered.target == "Turin"
    assert template.source_key(ODD) == ("ada lives in turin.", "where?", "x")
    assert template.common_prefix().source == VALUE_END
    with pytest.raises(TemplateError, match="needs the column '2nd'"):
        template.check_columns(["passage-text", "the question", "answers"], "rows.jsonl")


def test_a_column_that_is_called_row_is_read_for_row():
    template = Template("{{ row.question }}{% for row in table %}{{ row.cell }}{% endfor %}", "{{ row['answer'] }}")
    values = {"row": {"question": "Where?", "answer": "Turin"}, "table": [{"cell": 1}]}
    template.check_columns(list(values), "rows.jsonl")
    assert template.render(values).source == "Where?1" and template.render(values).target == "Turin"
    loop = Template("{% for row in table %}{{ row.cell }}{% endfor %}", "x")
    assert loop.columns == {"table"}
    assert (
        Template("{{ row }}", "x").columns == {"row"} and Template("{{ row }}", "x").render({"row": "a"}).source == "a"
    )


def test_messages_say_how_to_write_a_column_whose_name_is_not_a_word():
    with pytest.raises(TemplateError, match=r"""In a template, that column is row\["passage-text"\]"""):
        Template("{{ passage-text }}", "x").check_columns(list(ODD), "rows.jsonl")
    with pytest.raises(TemplateError, match=r"""A column with a space or a dash in its name is row\["its name"\]"""):
        Template.from_dict({"source": "{{ the question }}", "target": "x"})


def test_references_are_needed_only_where_a_row_is_evaluated():
    template = Template("{{ q }}", "{{ a }}", "[a] + others")
    assert template.training_columns == {"q", "a"} and template.columns == {"q", "a", "others"}
    assert template.render({"q": "b", "a": "c"}).references == ()
    assert template.render({"q": "b", "a": "c", "others": ["d"]}).references == ("c", "d")


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("{% if a %}\n{{ a }}\n{% endif %}\nEnd", []),
        ("{% if a %}{% if b %}\n  {% set c = 1 %}\n{{ a }}{% endif +%}\nx{% endif -%}\nEnd", []),
        ("Title: {% if a %}{{ a }}{% endif %}\nEnd", ["Title: {% if a %}{{ a }}{% endif %}"]),
        ("Title: {% if a %}{{ a }}{% endif %}", []),
        ("a {# of b #}\nEnd {{ a }}", ["a {# of b #}"]),
        ("List:\n  {% if a %}- {{ a }}{% endif +%}\nEnd", ["  {% if a %}- {{ a }}{% endif +%}"]),
        ("List:\n  {%+ if a %}- {{ a }}{% endif +%}\nEnd", []),
    ],
)
def test_lines_that_lose_white_space_beside_a_tag_are_found(source, lines):
    template = Template.from_dict({"source": source, "target": "x"})
    assert template.trimmed_lines == lines
    plain = jinja2.Environment().from_string(source).render(a="A", b="B")
    if lines:
        assert template.render({"a": "A", "b": "B"}).source != plain


def test_no_shipped_template_loses_white_space_unsaid():
    for name in shipped_templates():
        assert not Template.load(name).trimmed_lines


@pytest.mark.parametrize("printed", ["q.split()", "q.strip().split('a')[:2]", "[q]", "q, q", "q.splitlines()[1:]"])
def test_a_text_that_prints_a_list_for_every_row_is_refused_when_it_is_loaded(printed):
    with pytest.raises(TemplateError, match=r"it prints a list. Write `\| join\(', '\)` after it"):
        Template.from_dict({"source": f"a {{{{ {printed} }}}}", "target": "x"})
    for text in (f"({printed}) | join(' ')", "q.split()[0]", "q[:2]"):
        Template.from_dict({"source": f"a {{{{ {text} }}}}", "target": "x"})


def test_an_unknown_name_gets_the_nearest_first_and_how_to_list_all(tmp_path):
    with pytest.raises(TemplateError) as caught:
        Template.load("question_answering/fewshot")
    assert "Did you mean question_answering/few_shot" in str(caught.value) and len(str(caught.value)) < 250
    assert f"`prompt-tuning templates` lists all {len(shipped_templates())}." in str(caught.value)
    path = tmp_path / "many.yaml"
    path.write_text("".join(f"wording_{number}: {{source: a, target: b}}\n" for number in range(40)))
    with pytest.raises(TemplateError, match=r"the file holds 40 \('wording_3', ") as caught:
        Template.load(f"{path}:wording3")
    assert "Name one, such as" in str(caught.value) and str(caught.value).count("wording_") == 9
