"""Writes `parquet/`: small files of facts and chats, as pandas and the hub write them.

usage: python parquet.py    (pyarrow 26)
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).parent / "parquet"
OUT.mkdir(exist_ok=True)

facts = pa.table({
    "subject": ["Bergamo", "Oslo", "Saint-Denis"],
    "relation": ["P17", "P17", "P17"],
    "object": ["Italy", "Norway", "France"],
    "aliases": pa.array([["Italia"], None, []], pa.list_(pa.string())),
    "population": [120_000, None, 110_000],
    # A column that facts do not use.
    "picture": pa.array([b"\x00\xff", b"", None], pa.binary()),
})
pq.write_table(facts, OUT / "facts.parquet", compression="snappy")

messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
chats = pa.table({
    "messages": pa.array([
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
        [{"role": "system", "content": "Be short"}, {"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}],
    ], messages),
    "score": [1.5, 2.5],
})
pq.write_table(chats, OUT / "chats.parquet", compression="zstd")
