"""Renders templates by jinja2 as `apply_chat_template` of transformers sets it up, for the comparison with generated ones.

    pip install jinja2
    python render_templates.py CASES.json       # {"variables": {...}, "templates": [...]}; prints a JSON list, null for an error
"""

import copy
import json
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    """`{% generation %}`, which prints its content."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        cases = json.load(file)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    rendered = []
    for template in cases["templates"]:
        try:
            # A filter may change a list in place (`indent` does).
            variables = copy.deepcopy(cases["variables"])
            rendered.append(environment.from_string(template).render(**variables))
        except Exception:
            rendered.append(None)
    json.dump(rendered, sys.stdout)


if __name__ == "__main__":
    main()
