"""Renders chats by `transformers`, as a reference for `src/prompt/chat.rs`.

    pip install transformers jinja2
    python chat.py                  # templates of chat/, into chat/renderings.json
    python chat.py DIR OUT.json     # templates of your models; set UNFORGET_CHAT_RENDERINGS=OUT.json for the test

The templates of chat/ were written for this test: one for each family of formats, with the parts of Jinja that the family's models use.
"""

import datetime
import json
import sys
from pathlib import Path

from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template


class OneDay(datetime.datetime):
    """A fixed date, so that prompts do not change."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26, 12, 0, 0, tzinfo=tz)


chat_template_utils.datetime = OneDay
HERE = Path(__file__).parent / "chat"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SYSTEM = message("system", "Be kind.\nBe brief.")
ASKED = message("user", "  Where is Łódź, \"exactly\"? ")
ANSWERED = message("assistant", "In <b>Poland</b> & it's \\ large.\n")
AGAIN = message("user", "{{ 7 * 7 }} \u2028 日本 🎈?")
LAST = message("assistant", "<think>\nhm\n</think>\n\nIt's 49.")
CHATS = [
    ([ASKED], True),
    ([ASKED, ANSWERED], False),
    ([ASKED, ANSWERED, AGAIN], True),
    ([ASKED, ANSWERED, AGAIN, LAST], False),
    ([SYSTEM, ASKED], True),
    ([SYSTEM, ASKED, ANSWERED, AGAIN, LAST], False),
    ([ASKED, AGAIN], True),
]


def rendering(template: str, messages: list[dict[str, str]], generate: bool) -> str | None:
    """The rendering of transformers; None if the template refuses the chat."""
    try:
        rendered, _ = render_jinja_template(
            [messages],
            chat_template=template,
            add_generation_prompt=generate,
            enable_thinking=False,
            **TOKENS,
        )
    except Exception as error:
        print(f"    refused: {error}", file=sys.stderr)
        return None
    return rendered[0]


def main() -> None:
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "renderings.json"
    families = []
    for path in sorted(where.glob("*.jinja")):
        print(path.stem, file=sys.stderr)
        template = path.read_text(encoding="utf-8")
        chats = [
            {"messages": messages, "generate": generate, "rendered": rendering(template, messages, generate)}
            for messages, generate in CHATS
        ]
        families.append({"name": path.stem, "template": template, "tokens": TOKENS, "chats": chats})
    out.write_text(json.dumps(families, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
