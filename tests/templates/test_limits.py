"""A template costs at most seconds and megabytes, whoever wrote it."""

import pytest

from prompt_tuning.errors import TemplateError
from prompt_tuning.support import jinja_limits, jinja_prices
from prompt_tuning.templates import Template

GROW = "{% set ns = namespace(x='ab', l=[], d={}, t=(1, 2)) %}"
LOOP = "{% for i in range(100000) %}"
TOO_COSTLY = [
    "{{ 9**(9**9) }}",
    "{{ 9**(9**9) > 1 }}",
    "{% if false %}{{ 'a' * 10**12 }}{% endif %}{{ 'a' * 10**12 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [1] * 10**10 }}",
    "{{ (10**4000) * (10**4000) }}",
    LOOP + LOOP + LOOP + "{% endfor %}{% endfor %}{% endfor %}",
    LOOP + LOOP + LOOP + "text{% endfor %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) if range(100000) | list and false %}{% endfor %}",
    "{% for i in range(100000) recursive %}{{ loop(range(100000)) }}{% endfor %}",
    GROW + LOOP + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    GROW + LOOP + "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    GROW + LOOP + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}{{ ns.x }}",
    GROW + LOOP + "{% set ns.x = ns.x | replace('a', 'aaaaaaaa') %}{% endfor %}{{ ns.x }}",
    GROW + LOOP + "{% set ns.x = ns.x.replace('', 'aaaaaaaa') %}{% endfor %}{{ ns.x }}",
    GROW + LOOP + "{% set ns.x = ns.x.join(ns.x) %}{% endfor %}{{ ns.x }}",
    GROW + LOOP + "{% set ns.x = [ns.x, ns.x, ns.x] | join(ns.x) %}{% endfor %}{{ ns.x }}",
    GROW + LOOP + "{% set ns.x = ns.x | map('upper') | join(ns.x) %}{% endfor %}{{ ns.x }}",
    GROW + LOOP + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}{{ ns.x }}",
    GROW + LOOP + "{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}{{ ns.x }}",
    GROW + LOOP + "{% set ns.x = ns.x.translate({97: ns.x}) %}{% endfor %}{{ ns.x }}",
    GROW + LOOP + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
    GROW + LOOP + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l == [[[]]] }}",
    GROW + LOOP + "{% set ns.t = (ns.t, ns.t) %}{% endfor %}{{ ns.d[ns.t] }}",
    GROW + LOOP + "{% set ns.d = {'a': ns.d, 'b': ns.d} %}{% endfor %}{{ ns.d | tojson }}",
    GROW + LOOP + "{% set ns.d = dict(a=ns.d, b=ns.d) %}{% endfor %}{{ ns.d | tojson }}",
    "{% set l = [1] %}" + LOOP + "{% set _ = l.extend(l) %}{% endfor %}",
    "{% set l = [1] %}" + LOOP + "{% set _ = l.append(l) %}{% endfor %}",
    "{{ ([[0] * 1000] * 1000) | sum(start=[]) | length }}",
    "{{ 'x' | center(10**10) }}",
    "{{ 'x'.center(10**10) }}",
    "{{ ['x'] | map('center', 10**10) | first }}",
    "{{ 'x'.ljust(10**10) }}{{ 'x'.zfill(10**10) }}",
    "{{ ('\\t' * 10000).expandtabs(100000) }}",
    "{{ 'x\\n' * 1000 | indent(10**10) }}",
    "{{ ('x\\n' * 1000) | indent(10**10) }}",
    "{{ ('x ' * 1000) | indent('y' * 100000, true) | indent(10**8, true) }}",
    "{{ ('x' * 1000000) | wordwrap(1) }}",
    "{{ ('x ' * 1000000) | wordwrap(1, wrapstring='y' * 1000) }}",
    "{{ ('<a>' * 1000000) | striptags }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ '{x:>1000000000}'.format_map({'x': 1}) }}",
    "{{ [1] | batch(10**10, 'x') | first | length }}",
    "{{ [1] | slice(10**10) | list | length }}",
    "{{ 1.5 | round(10**9, 'ceil') }}",
    "{{ (1).to_bytes(10**10, 'big') | length }}",
    "{{ {'a': [1] * 1000} | tojson(indent=10**7) }}",
    "{{ dict.fromkeys(range(100000), 'x' * 100000) | tojson }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
    "{% macro m(n) %}" + "words " * 1000 + "{% endmacro %}" + LOOP + "{{ m(1) }}{% endfor %}",
    "{% block a %}" + LOOP + LOOP + "{{ i }}{% endfor %}{% endfor %}{% endblock %}",
    "{% set x = 'a' * 1000000 %}" + LOOP + "{{ x[1:] == x[:5] }}{% endfor %}",
    "{% set x = 'a' * 1000000 %}" + LOOP + "{% if x in context %}{% endif %}{% endfor %}",
    "{{ range(100000) | select('in', 'a' * 1000000) | list | length }}",
    "{{ 'x' * 1000 * 1000 * 1000 }}",
    "{% set x = 'a' * 100000 %}" + LOOP + "{{ x }}{% endfor %}",
    "{% macro m(x) %}" + LOOP + "{{ x }}{% endfor %}{% endmacro %}{{ m('a' * 100000) }}",
    "{% macro m() %}" + LOOP + LOOP + "{{ caller(i) }}{% endfor %}{% endfor %}"
    "{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}",
]
OTHERS = [
    "{% block a %}{% if i is undefined or i %}{{ self.a() }}{{ self.a() }}{% endif %}{% endblock %}",
    "{{ 1e400 }}",
    "{{ 1e400 | int }}",
    "{{ " + "9" * 5000 + " }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ x" + " | trim" * 5000 + " }}",
    "{{ 1" + " + 1" * 5000 + " }}",
    "{{ " + "[" * 90 + "]" * 90 + " }}",
    "{% if true %}" * 500 + "{% endif %}" * 500,
    "{% for i in range(2) %}" * 50 + "{% endfor %}" * 50,
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ context | truncate(-5) }}",
    "{{ 1 // 0 }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "x" * (jinja_limits.MAX_TEXT + 1),
]
ROW = {"context": "The ferry waits in the harbour.", "x": "y"}


@pytest.mark.parametrize("text", TOO_COSTLY, ids=range(len(TOO_COSTLY)))
def test_a_template_that_costs_too_much_is_an_error_that_names_it(text, monkeypatch):
    monkeypatch.setattr(jinja_prices, "MAX_COST", jinja_prices.MAX_COST // 20)  # The whole cost takes a second.
    with pytest.raises(TemplateError, match=r"^template mine: .*(characters or steps|digits)") as caught:
        Template.from_dict({"source": "{{ context }}" + text, "target": "x"}, "mine").render(ROW)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("field", ["source", "target", "references", "system", "answer_choices"])
def test_every_field_is_bounded(field):
    text = "[9**(9**9)]" if field == "references" else "{{ 9**(9**9) }}"
    fields = {"source": "{{ context }}", "target": "{{ context }}"} | {field: text}
    template = Template.from_dict(fields, "mine")
    with pytest.raises(TemplateError, match=r"^template mine: .*4,300 digits"):
        template.render(ROW)
        template.choices(ROW)


@pytest.mark.parametrize("text", OTHERS, ids=range(len(OTHERS)))
def test_a_template_that_cannot_be_rendered_is_an_error_that_names_it(text):
    with pytest.raises(TemplateError, match=r"^template mine: "):
        Template.from_dict({"source": "{{ context }}" + text, "target": "x"}, "mine").render(ROW)


def test_an_ordinary_template_may_compute():
    text = (
        "{% set ns = namespace(n=0) %}{% for word in context.split() if word | length > 3 %}{% set ns.n = ns.n + 1 %}"
        "{{ loop.index }}/{{ loop.length }} {{ '%5s' % word }} {{ '{:>6}'.format(word) }}\n{% endfor %}"
        "{{ ns.n * 2 ** 3 }} {{ '=' * 5 }} {{ context | wordwrap(10) | replace('\n', ' ') }} {{ (10**12) | string }}"
    )
    template = Template.from_dict({"source": text, "target": "x"}, "mine")
    assert template.render({"context": "The ferry waits"}).source == (
        "1/2 ferry  ferry\n2/2 waits  waits\n16 ===== The ferry waits 1000000000000"
    )


def test_a_loop_has_the_items_that_its_list_had_before():
    text = "{% set l = [1, 2] %}{% for i in l %}{% set _ = l.append(i) %}{{ loop.length }}{% endfor %}{{ l | length }}"
    assert Template.from_dict({"source": text + "{{ x }}", "target": "x"}, "mine").render(ROW).source == "224y"


def test_a_long_row_is_rendered():
    template = Template.from_dict(
        {
            "source": "{{ context | trim }}{% if context %}{{ context.split('. ') | join('\n') }}{% endif %}",
            "target": "x",
        }
    )
    text = "A sentence of a long book. " * 50_000
    assert len(template.render({"context": text}).source) > 2_600_000
