"""Renders small templates by `transformers`, as a reference for `src/prompt/jinja`.

    pip install transformers jinja2
    python chat_templates.py        # into chat/expressions.json

Each template shows one part of Jinja or of Python that chat templates use; those of a group are rendered with the same variables.
"""

import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent / "chat"
MESSAGES = [
    {"role": "user", "content": "it's <b>&\"x\" é\n🎈", "name": None},
    {"role": "assistant", "content": "ho", "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": [1.0, True, None]}}}]},
]
TOOLS = [{"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}}]
VARIABLES = {
    "bos_token": "<s>",
    "n": 7,
    "x": -2.5,
    "big": 12345678901234567890,
    "flag": True,
    "nothing": None,
    "items": [3, 1, 2],
    "words": ["b", "A", "c a"],
    "d": {"b": 1, "a": {"k": [1, "two", None, 2.5, False]}, "Z": "z'z"},
    "people": [{"name": "Ann", "age": 3, "city": {"x": "r"}}, {"name": "bob", "age": 1, "city": {"x": "s"}}, {"name": "Cy", "age": 3, "city": {"x": "r"}}],
    "text": "  Hello, wOrld! ça va?\nline two\r\nthree\t",
}
# What Python writes.
TEXTS = """
{{ true }}|{{ none }}|{{ false }}|{{ nothing }}|{{ flag }}|{{ undefined_name }}
{{ d }}|{{ items }}|{{ (1, 'a') }}|{{ (1,) }}|{{ () }}|{{ [] }}|{{ {} }}
{{ 1.0 }}|{{ 0.1 }}|{{ 1e20 }}|{{ 1e16 }}|{{ 1e15 }}|{{ 1e-5 }}|{{ 0.0001 }}|{{ 3.0e10 }}|{{ x }}|{{ 1/3 }}|{{ big }}
{{ 'a' ~ true ~ none ~ 1.0 ~ [1, 'x'] ~ d.b }}
{{ [true, none, 1.5, 'a"b', "a'b", 'a\\nb', 'é', '\\x01', 'a\\\\b'] }}
{{ messages[0] }}|{{ messages[1] }}
{{ [1, 2] | string }}|{{ none | string }}|{{ true | string | length }}
{{ [true, none, 1.0] | join(',') }}|{{ people | map(attribute='name') | join('-') }}|{{ people | join(', ', attribute='age') }}
{{ d.items() | list }}|{{ d.keys() | list }}|{{ d.values() | list }}|{{ d.items() }}|{{ range(3) }}|{{ range(1, 9, 3) }}|{{ range(3) | list }}
{{ namespace(a=1).a }}|{{ dict(a=1, b='x') }}|{{ dict([('k', 2)]) }}
{{ d | dictsort }}|{{ d | items | list }}
{{ text | trim | tojson }}
"""
OPERATORS = """
{{ 7 // 2 }}|{{ -7 // 2 }}|{{ 7 % 3 }}|{{ -7 % 3 }}|{{ 7 / 2 }}|{{ 4 / 2 }}|{{ 2 ** 3 }}|{{ 2 ** -1 }}|{{ 2 ** 3 ** 2 }}|{{ -2 ** 2 }}|{{ 7.5 // 2 }}|{{ -7.5 % 2 }}
{{ 1 + true }}|{{ 1 == true }}|{{ 1 == 1.0 }}|{{ 'a' == 1 }}|{{ [1] == [1.0] }}|{{ (1,) == [1] }}|{{ none == false }}|{{ {'a': 1} == {'a': 1.0} }}
{{ 'a' < 'b' }}|{{ [1, 2] < [1, 3] }}|{{ 1 < 2 < 3 }}|{{ 3 > 2 > 2 }}|{{ 'Z' < 'a' }}
{{ 'ell' in text }}|{{ 'a' not in d }}|{{ 3 in items }}|{{ none in [none] }}|{{ 'x' in nothing_defined }}
{{ 'ab' * 3 }}|{{ [1] * 2 }}|{{ [1] + [2] }}|{{ (1,) + (2,) }}|{{ 'a' 'b' }}
{{ 'x' if false }}|{{ 'x' if flag else 'y' }}|{{ 1 if 0 else 2 if 0 else 3 }}
{{ 0 or 'a' }}|{{ '' and 1 }}|{{ not [] }}|{{ none or false }}|{{ 1 and 2 }}|{{ not not 1 }}|{{ not 1 == 2 }}
{{ items[0] }}|{{ items[-1] }}|{{ items[9] }}|{{ items[1:] }}|{{ items[::-1] }}|{{ items[:-1] }}|{{ 'abc'[1] }}|{{ 'abc'[::-1] }}|{{ 'abcdef'[1:5:2] }}|{{ 'abc'[-2:] }}|{{ (1,2,3)[1:] }}|{{ 'abc'[5:2:-1] }}
{{ d['b'] }}|{{ d.a.k[1] }}|{{ d['nope'] }}|{{ d.nope is defined }}|{{ d.get('nope') }}|{{ d.get('b', 3) }}|{{ d.get('zz', 'dflt') }}
{{ '%s-%d-%5.2f|%-4s|%04d|%x|%r|%%' % ('a', 3, 2.345, 'b', 42, 255, 'q') }}|{{ '%(a)s' % {'a': 1} }}|{{ '%s' % [1] }}|{{ '%e %g %g' % (1234.5, 0.0001, 1e10) }}
{{ '{} {0}'.format('a') if false else '{} {}'.format('a', 1.5) }}|{{ '{0:>5}|{1:05.1f}|{n:,}'.format('a', 2.25, n=1234567) }}|{{ '{:<4}|{:^5}|{!r}'.format('a', 'b', 'c') }}|{{ '{x[0]}{{}}'.format(x=[1]) }}
{{ - 3 | abs }}|{{ -3 | abs }}|{{ (-3) | abs }}|{{ 3 is odd }}|{{ 'x' is string and 3 is number }}|{{ 4 is divisibleby 2 }}|{{ n is not none }}|{{ none is none }}
"""
STRINGS = """
{{ 'a,b,c'.split(',') }}|{{ 'a b  c'.split() }}|{{ 'a,b,c'.split(',', 1) }}|{{ 'a,b,c'.rsplit(',', 1) }}|{{ ' a b '.split(' ') }}|{{ 'a b  c '.rsplit(None, 1) }}|{{ ''.split(',') }}|{{ ''.split() }}
{{ ' x '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ ' x '.lstrip() }}|{{ ' x '.rstrip() ~ '.' }}|{{ '<think>a'.lstrip('<think>') }}|{{ '\\n\\na\\n'.strip('\\n') }}
{{ 'abc'.startswith('ab') }}|{{ 'abc'.endswith(('x', 'c')) }}|{{ 'abc'.startswith('b', 1) }}|{{ 'abc'.removeprefix('a') }}|{{ 'abc'.removesuffix('x') }}
{{ 'aXb'.lower() }}|{{ 'aß'.upper() }}|{{ "they're bill's-x".title() }}|{{ 'hELLO wORLD'.capitalize() }}|{{ 'aBc'.swapcase() }}|{{ 'Straße'.casefold() }}
{{ 'a-b-a'.replace('a', 'x') }}|{{ 'aaa'.replace('a', 'b', 2) }}|{{ 'abc'.find('c') }}|{{ 'abc'.find('z') }}|{{ 'abcabc'.rfind('b') }}|{{ 'aab'.count('a') }}|{{ 'abc'.index('b') }}
{{ ','.join(['a', 'b']) }}|{{ 'a'.center(5) ~ '.' }}|{{ 'a'.ljust(3, '*') }}|{{ 'a'.rjust(3) }}|{{ '-5'.zfill(4) }}|{{ 'a\\tb'.expandtabs(4) }}
{{ 'a\\nb\\r\\nc'.splitlines() }}|{{ 'a\\n'.splitlines(true) }}|{{ 'a=b=c'.partition('=') }}|{{ 'a=b=c'.rpartition('=') }}|{{ 'a'.partition('=') }}
{{ 'abc'.isalpha() }}|{{ 'a1'.isalnum() }}|{{ '12'.isdigit() }}|{{ ''.isdigit() }}|{{ 'aB'.islower() }}|{{ 'AB'.isupper() }}|{{ ' \\n'.isspace() }}|{{ 'Ab Cd'.istitle() }}|{{ 'é'.isascii() }}
{{ text | trim }}|{{ 'abc' | upper }}|{{ 'abc DEF' | capitalize }}|{{ "it's a dog-house (big)" | title }}|{{ 'a b c' | wordcount }}|{{ 'xxaxx' | trim('x') }}
{{ '<a href="x">' | e }}|{{ 'a/b c?' | urlencode }}|{{ {'a b': 1} | urlencode }}|{{ '<p>a  <b>b</b></p>' | striptags }}
{{ 'abc' | replace('b', 'x') }}|{{ 'one two three four' | truncate(9) }}|{{ 'one two three four' | truncate(9, true, '..', 0) }}|{{ 'a' | center(4) ~ '.' }}
{{ 'a\\nb\\n\\nc' | indent }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent('>', blank=true) }}|{{ '%s!' | format('a') }}
"""
FILTERS = """
{{ items | sort }}|{{ items | sort(reverse=true) }}|{{ words | sort }}|{{ words | sort(case_sensitive=true) }}|{{ people | sort(attribute='age') | map(attribute='name') | list }}|{{ people | sort(attribute='age,name') | map(attribute='name') | list }}
{{ items | first }}|{{ items | last }}|{{ [] | first }}|{{ items | max }}|{{ words | min }}|{{ people | max(attribute='age') }}|{{ items | sum }}|{{ people | sum(attribute='age') }}|{{ items | reverse | list }}|{{ 'abc' | reverse }}
{{ items | length }}|{{ d | count }}|{{ 'é🎈' | length }}|{{ nothing_defined | length }}
{{ people | selectattr('age', 'equalto', 3) | map(attribute='name') | list }}|{{ people | rejectattr('age', 'gt', 1) | list | length }}|{{ people | selectattr('city.x', '==', 'r') | list | length }}|{{ people | selectattr('nope') | list }}
{{ items | select('odd') | list }}|{{ [0, 1, '', 'a', none] | select | list }}|{{ items | reject('in', [1, 2]) | list }}|{{ words | map('upper') | list }}|{{ words | map('replace', 'a', 'x') | list }}|{{ people | map(attribute='nope', default='-') | join }}
{{ people | groupby('age') }}|{% for g in people | groupby('city.x') %}{{ g.grouper }}:{{ g.list | length }};{% endfor %}
{{ [1, 1.0, 2, 'a', 'A'] | unique | list }}|{{ items | batch(2) | list }}|{{ items | batch(2, 0) | list }}|{{ items | slice(2) | list }}
{{ nothing_defined | default('z') }}|{{ '' | default('z', true) }}|{{ none | default('z') }}|{{ none | d('z', boolean=true) }}
{{ '3' | int + 1 }}|{{ '3.7' | int }}|{{ 'x' | int(5) }}|{{ '0x1f' | int(base=16) }}|{{ '1.5' | float }}|{{ 'x' | float }}|{{ 2.5 | round }}|{{ 2.567 | round(2) }}|{{ 2.1 | round(0, 'ceil') }}|{{ 42 | round }}|{{ 3.5 | int }}|{{ true | int }}
{{ 'abc' | list }}|{{ d | list }}|{{ 1000000 | filesizeformat }}|{{ 'x' | attr('upper') is defined }}
{{ 'a' is in 'abc' }}|{{ items is iterable }}|{{ d is mapping }}|{{ 'a' is sequence }}|{{ 1 is integer }}|{{ true is integer }}|{{ true is number }}|{{ true is boolean }}|{{ 1.0 is float }}|{{ 'a' is lower }}|{{ none is sameas none }}|{{ d is callable }}|{{ 'tojson' is filter }}|{{ 'odd' is test }}
"""
JSON = """
{{ d | tojson }}|{{ messages[0] | tojson }}|{{ tools | tojson }}
{{ {'b': 1, 'a': "<it's>&"} | tojson }}|{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}|{{ 'é🎈' | tojson(ensure_ascii=true) }}|{{ 'é🎈' | tojson(ensure_ascii=False) }}
{{ tools | tojson(indent=4) }}|{{ {'a': [], 'b': {}, 'c': [1]} | tojson(indent=2) }}|{{ [1, [2]] | tojson(indent='\\t') }}|{{ {'a': 1, 'b': [1, 2]} | tojson(separators=(',', ':')) }}|{{ {'a': [1]} | tojson(indent=1, separators=(',', ': ')) }}
{{ [1.0, 0.1, 1e20, true, none, 'a\\n\\t\\x01\\x7f"\\\\'] | tojson }}|{{ (1, 2) | tojson }}|{{ {1: 2, none: 3, true: 4, 1.5: 6} | tojson }}|{{ messages[1].tool_calls[0].function.arguments | tojson }}
"""
BLOCKS = """
{% for k, v in d.items() %}{{ k }}={{ v }}{{ ',' if not loop.last }}{% endfor %}
{% for i in items %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('a', 'b') }}{{ loop.previtem }}{{ loop.nextitem }};{% else %}none{% endfor %}
{% for i in [] %}x{% else %}none{% endfor %}|{% for i in range(9) if i is odd %}{{ i }}/{{ loop.length }} {% endfor %}
{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.last = m.role %}{% set outer = 1 %}{% endfor %}{{ ns.n }}{{ ns.last }}{{ outer is defined }}
{% set a, b = 1, 'x' %}{{ a }}{{ b }}|{% set t = 1, 2 %}{{ t }}|{% set y %}in{{ a }}{% endset %}{{ y }}{{ y | length }}|{% set z | upper %}q{% endset %}{{ z }}
{% macro f(a, b='d', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(1) }}{{ f(1, c=2) }}{{ f() }}{{ f(b=f(2), a='x') }}|{% macro w(x) %}<{{ caller(x) }}>{% endmacro %}{% call(v) w(3) %}{{ v }}!{% endcall %}
{% if items and not nothing %}A{% elif x %}B{% else %}C{% endif %}|{% if x is not defined %}u{% endif %}|{% filter upper %}abc{% endfilter %}|{% with q = 3 %}{{ q }}{% endwith %}{{ q is defined }}
{% for n in [{'v': 1, 'c': [{'v': 2, 'c': []}]}] recursive %}{{ n.v }}({{ loop(n.c) }}){{ loop.depth }}{% endfor %}
{% raw %}{{ not }} {% x %}{% endraw %}|{# a comment #}|{{ '{{' }}|{{ "a" "b" }}|{{ '\\u00e9\\x41\\101\\q' }}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}|{% set j = joiner('; ') %}{{ j() }}1{{ j() }}2
{% generation %}a{{ n }}{% endgeneration %}|{%- generation -%} b {%- endgeneration -%} c
{% for m in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}{{ index }}{{ m.role }} {% endfor %}|{{ messages[-1].content.split('h')[-1] }}|{{ messages[0]['content'] is string }}
{% for i in items %}{% for j in words %}{{ loop.index }}{{ loop.last }}{% endfor %}{{ loop.index }}{% endfor %}
"""
SPACE = [
    "a\n  {% if true %}\n  b\n  {% endif %}\nc",
    "a {%- if true -%} b {%- endif %} c\n",
    "{% if true %}\n\nx{% endif %}\n\n",
    "  {{ 1 }}\n  {# c #}\n  {{ 2 }}\n",
    "a\n  {%+ if true %}b{% endif +%}\nc",
    "{%- for i in [1, 2] %}\n  {{- i }}\n  {{ i -}}\n{% endfor %}x",
    "\n\n{{- 'a' }}\n\n",
    "x\r\n{% set a = 1 %}\r\ny{{ a }}\r\n",
    "  {% raw -%}\n  {{ a }}\n  {%- endraw %}  \nz",
    "\t{% set a = {'b': {'c': 1}} %}{{a.b.c}}{{ {'x': {}}|length }}",
    "a  \n\t {#- c -#} \n b",
]


def lines(block: str) -> list[str]:
    return [line.replace("\\n", "\n") if False else line for line in block.strip("\n").splitlines()]


def main() -> None:
    cases = []
    blocks = [TEXTS, OPERATORS, STRINGS, FILTERS, JSON, BLOCKS]
    for template in [line for block in blocks for line in lines(block)] + SPACE:
        template_parts = [template] if "{%" in template or template in SPACE else template.split("|{{")
        template_parts = [template_parts[0]] + ["{{" + part for part in template_parts[1:]]
        for part in template_parts:
            try:
                # As `apply_chat_template`, which leaves out what is None.
                messages = [{k: v for k, v in m.items() if v is not None} for m in MESSAGES]
                rendered, _ = render_jinja_template([messages], chat_template=part, tools=TOOLS, **VARIABLES)
                cases.append({"template": part, "rendered": rendered[0]})
            except Exception as error:
                print(f"{part!r}: {type(error).__name__}: {error}", file=sys.stderr)
                cases.append({"template": part, "rendered": None})
    out = {"variables": VARIABLES | {"messages": MESSAGES, "tools": TOOLS}, "cases": cases}
    (HERE / "expressions.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
