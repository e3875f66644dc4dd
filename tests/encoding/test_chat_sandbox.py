"""A chat template, which comes with a stranger's tokenizer, writes what transformers writes, at a bounded cost."""

import copy

import pytest

from prompt_tuning.encoding.chat_sandbox import render_chat
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import TemplateError
from prompt_tuning.support import jinja_prices
from prompt_tuning.templates import Template

MESSAGES = [
    {"role": "system", "content": "Answer <b>briefly</b>."},
    {"role": "user", "content": "Où est le «ferry»?\n"},
    {"role": "assistant", "content": "<think>\n</think>In the harbour."},
]
ALIKE = [
    "{%- for m in messages %}\n    {{- m.role + ': ' + m.content | trim }}\n{%- endfor %}\n{{ eos_token }}"
    "{{ bos_token }}",
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson(indent=2) }}{% endfor %}",
    "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}\n{% endgeneration %}{{ x }}{% endfor %}",
    "{% set ns = namespace(last='') %}{% for m in messages[1:] %}{% set ns.last = m.content.split('</think>')[-1] %}"
    "{% endfor %}{{ ns.last.lstrip('\\n') ~ messages | length ~ none }}{{ missing }}{{ tools }}"
    "{{ documents is none }}",
    "{% macro turn(m) %}<{{ m['role'] }}>{{ caller() if caller else m['content'] }}{% endmacro %}"
    "{{ turn(messages[0]) }}{% call turn(messages[1]) %}x{% endcall %}{{ 'a' * 3 }}{{ dict(a=1).items() | list }}",
    "{% if add_generation_prompt %}{{ '%s-%d' % (messages[0].role, 3) }}{% else %}no{% endif %}",
]
HOSTILE = [
    "{{ 1 // 0 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include 'x' %}",
    "{% if messages | length > 100 %}{{ 9**(9**9) }}{% endif %}{{ 9**(9**9) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages }}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x=messages[0].content) %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{{ messages | tojson(separators=('x' * 1000000, ':')) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ strftime_now('%Y' * 10) }}{{ 'x' | center(10**10) }}",
    "{{ strftime_now('\ud800') }}",
    "{{ " + "(" * 3000 + ")" * 3000 + " }}",
    "{# #}" * 30_000,
    "{% generation %}",
    '{{ strftime_now("' * 5_000,
]


@pytest.mark.parametrize("opens_answer", [False, True])
@pytest.mark.parametrize("text", ALIKE, ids=range(len(ALIKE)))
def test_a_chat_template_writes_what_transformers_writes(text, opens_answer, tokenizer):
    expected = tokenizer.apply_chat_template(
        MESSAGES, chat_template=text, tokenize=False, add_generation_prompt=opens_answer
    )
    special = tokenizer.special_tokens_map
    assert render_chat(text, MESSAGES, special, add_generation_prompt=opens_answer) == expected


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_chat_template_is_an_error_that_names_the_tokenizer(text, tokenizer, monkeypatch):
    monkeypatch.setattr(jinja_prices, "MAX_COST", jinja_prices.MAX_COST // 20)
    hostile = copy.deepcopy(tokenizer)
    hostile.chat_template = text
    hostile.name_or_path = "stranger/model"
    with pytest.raises(TemplateError, match="stranger/model") as caught:
        Encoder(Template("{{ question }}", "x", chat=True), hostile).row({"question": "Where?"})
    assert len(str(caught.value)) < 400
