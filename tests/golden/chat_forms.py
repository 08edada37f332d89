"""Renders chats in all their forms by `transformers`, as a reference for what a chat is trained on.

    pip install transformers jinja2
    python chat_forms.py            # into chat/forms.json

For every answer of a chat: the rendering of the chat up to it, null where the template refuses it.
"""

import json
import sys
from pathlib import Path

from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

from chat import OneDay

chat_template_utils.datetime = OneDay
HERE = Path(__file__).parent / "chat"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CALL = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": {"b": 3, "a": 2.0}}}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "It's <b>'s sum", "parameters": {"type": "object", "properties": {"b": {"type": "number"}, "a": {"type": "number"}}}}}]
ASK = {"role": "user", "content": "2+3?"}
SUM = {"role": "assistant", "content": "It is 5."}
RESULT = {"role": "tool", "content": "5", "tool_call_id": "1"}
CHATS = {
    "plain": [ASK, SUM],
    "system": [{"role": "system", "content": "Be kind."}, ASK, SUM],
    "two turns": [ASK, SUM, {"role": "user", "content": "And 1+1?"}, {"role": "assistant", "content": "2"}],
    "reasoning in the text": [ASK, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt is 5."}, ASK, SUM],
    "reasoning": [ASK, {"role": "assistant", "content": "It is 5.", "reasoning_content": "hm"}],
    "thinking": [ASK, {"role": "assistant", "thinking": "hm", "content": "It is 5."}],
    "null content": [ASK, {"role": "assistant", "content": None, "tool_calls": CALL}, RESULT, SUM],
    "no content": [ASK, {"role": "assistant", "tool_calls": CALL}, RESULT, SUM],
    "empty content": [ASK, {"role": "assistant", "content": "", "tool_calls": CALL}, RESULT, SUM],
    "content and call": [ASK, {"role": "assistant", "content": "Let me add.", "tool_calls": CALL}, RESULT, SUM],
    "developer": [{"role": "developer", "content": "Be kind."}, ASK, SUM],
    "ipython": [ASK, SUM, {"role": "ipython", "content": "x"}, {"role": "assistant", "content": "y"}],
    "assistant first": [{"role": "assistant", "content": "Hello."}, ASK, SUM],
    "assistant alone": [{"role": "assistant", "content": "Hello."}],
    "two users": [ASK, ASK, SUM],
    "extra fields": [{"role": "user", "name": "Ann", "content": "2+3?"}, {"content": "It is 5.", "role": "assistant", "n": 1.0}],
}
SMALL = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "default system": "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "messages[0]": "{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You help.' }}{%- endif %}{%- for m in messages %}{{- '<' + m.role + '>' + (m.content or '') }}{%- if m.tool_calls %}{%- for c in m.tool_calls %}{{- '<call>' }}{{- c.function | tojson }}{%- endfor %}{%- endif %}{{- '</s>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}",
    "distill": "{{ bos_token }}{%- for m in messages -%}{%- if m['role'] == 'user' -%}{{ '<U>' + m['content'] }}{%- endif -%}{%- if m['role'] == 'assistant' and m['content'] is defined -%}{%- set content = m['content'] -%}{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}{%- endif -%}{{ '<A>' + content + eos_token }}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<A><think>\\n' }}{%- endif %}",
    "thinking": "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set reasoning = m.reasoning_content or '' %}{{- '<assistant>\\n' }}{%- if loop.last or reasoning %}{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}{{- (m.content or '').split('</think>')[-1].lstrip('\\n') }}{%- else %}{{- '<' + m.role + '>\\n' + m.content }}{%- endif %}{{- '</s>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<assistant>\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
    "tools": "{%- if tools %}{{- '<tools>' }}{%- for t in tools %}{{- t | tojson }}{%- endfor %}{{- '</tools>\\n' }}{%- endif %}{%- for m in messages %}{{- '<' ~ m.role ~ '>' ~ (m.content if m.content is defined else '') }}{%- for c in m.tool_calls or [] %}{{- '<call>' ~ c.function.name ~ c.function.arguments | tojson }}{%- endfor %}{{- '</s>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}",
    "message": "{% for m in messages %}{{ m | tojson }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{% endif %}",
}


def rendering(template: str, messages: list, tools: list | None) -> str | None:
    try:
        chat = _normalize_chat_messages(messages)
        rendered, _ = render_jinja_template([chat], tools=tools, chat_template=template, **TOKENS)
    except Exception as error:
        print(f"    refused: {error}", file=sys.stderr)
        return None
    return rendered[0]


def main() -> None:
    families = {path.stem: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.jinja"))}
    cases = []
    for template_name, template in (SMALL | families).items():
        for name, messages in CHATS.items():
            for tools in [None, TOOLS] if name in ("plain", "content and call") else [None]:
                answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
                cases.append({
                    "name": f"{template_name}, {name}",
                    "template": template_name,
                    "messages": messages,
                    "tools": tools,
                    "rendered": [rendering(template, messages[: i + 1], tools) for i in answers],
                })
    out = {"templates": SMALL | families, "tokens": TOKENS, "cases": cases}
    (HERE / "forms.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
