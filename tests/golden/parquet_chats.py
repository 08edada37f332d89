"""Writes chats with tools as `datasets` and `pyarrow` write them: values of the type JSON, and structs with the fields of all others.

    pip install "datasets>=4.7" pyarrow
    python parquet_chats.py         # into parquet/chats/
"""

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Json, List, Value, load_dataset

OUT = Path(__file__).parent / "parquet" / "chats"


def call(name: str, **arguments: object) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool(name: str, **properties: str) -> dict:
    properties = {key: {"type": kind} for key, kind in properties.items()}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


ROW = {
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call("f", x=1), call("g", y="z")]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "ho"},
    ],
    "tools": [tool("f", x="integer"), tool("g", y="string")],
}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    # Each message and tool is JSON, as `load_dataset` makes of JSON lines.
    with tempfile.TemporaryDirectory() as directory:
        lines = Path(directory) / "rows.jsonl"
        lines.write_text(json.dumps(ROW) + "\n")
        loaded = load_dataset("json", data_files=str(lines), split="train", cache_dir=directory)
        print(loaded.features)
        loaded.to_parquet(OUT / "json_lines.parquet")
    # Only arguments and parameters are.
    features = Features({
        "messages": List({
            "role": Value("string"),
            "content": Value("string"),
            "tool_calls": List({
                "type": Value("string"),
                "function": {"name": Value("string"), "arguments": Json()},
            }),
        }),
        "tools": List({
            "type": Value("string"),
            "function": {"name": Value("string"), "parameters": Json()},
        }),
    })
    rows = [{**message, "tool_calls": message.get("tool_calls")} for message in ROW["messages"]]
    deep = Dataset.from_list([{"messages": rows, "tools": ROW["tools"]}], features=features)
    deep.to_parquet(OUT / "json_arguments.parquet")
    print(deep[0])
    answers = Features({"question": Value("string"), "answer": Json()})
    Dataset.from_list([{"question": "a?", "answer": "five"}], features=answers).to_parquet(OUT / "json_answer.parquet")
    # Without JSON every call has the arguments of all others.
    pq.write_table(pa.Table.from_pylist([ROW]), OUT / "structs.parquet")


if __name__ == "__main__":
    main()
