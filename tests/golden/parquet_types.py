"""Writes facts with objects of every type of Parquet by `pyarrow`, and what their text is in Python.

    pip install pyarrow
    python parquet_types.py         # into parquet/types/
"""

import datetime as dt
import decimal
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).parent / "parquet" / "types"
D = decimal.Decimal
WHEN = dt.datetime(2024, 7, 26, 12, 0, 0, 123000)
# Type, values, and whether they are read: what is not read must be refused.
TYPES: dict[str, tuple[pa.DataType, list, bool]] = {
    "string": (pa.string(), ["Rome", "Łódź"], True),
    "large_string": (pa.large_string(), ["Rome", "Łódź"], True),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["Rome", "Rome"], True),
    "binary": (pa.binary(), ["Rome".encode(), "Łódź".encode()], True),
    "large_binary": (pa.large_binary(), [b"Rome", b"abc def"], True),
    "fixed_binary": (pa.binary(4), [b"Rome", b"Oslo"], True),
    "not_utf8": (pa.binary(), [b"\xff\xfe", b"a"], False),
    "int8": (pa.int8(), [-5, 7], True),
    "int64": (pa.int64(), [-(2**63), 2**63 - 1], True),
    "uint64": (pa.uint64(), [0, 2**64 - 1], True),
    "float16": (pa.float16(), [1.5, -0.25], True),
    "float32": (pa.float32(), [1.5, 3.25], True),
    "float64": (pa.float64(), [1.5, 0.1], True),
    "decimal": (pa.decimal128(30, 3), [D("-1.500"), D("123456789012345678901234567.125")], True),
    "small_decimal": (pa.decimal128(5, 4), [D("0.0012"), D("-0.5000")], True),
    "decimal_int": (pa.decimal128(20, 0), [D("0"), D("12345678901234567890")], True),
    "date32": (pa.date32(), [dt.date(1969, 12, 31), dt.date(2024, 2, 29)], True),
    "timestamp_ms": (pa.timestamp("ms"), [WHEN, dt.datetime(1969, 12, 31, 23, 59, 59)], True),
    "timestamp_us": (pa.timestamp("us"), [WHEN, dt.datetime(1900, 3, 1)], True),
    "timestamp_ns": (pa.timestamp("ns"), [WHEN, WHEN], False),
    "timestamp_tz": (pa.timestamp("us", tz="UTC"), [WHEN, WHEN], False),
    "time": (pa.time64("us"), [dt.time(1, 2, 3), dt.time(4, 5, 6)], False),
    "duration": (pa.duration("us"), [dt.timedelta(days=2, seconds=5), dt.timedelta(seconds=5)], False),
    "bool": (pa.bool_(), [True, False], False),
    "list": (pa.list_(pa.string()), [["a"], ["b"]], False),
    "struct": (pa.struct([("a", pa.string())]), [{"a": "b"}, {"a": "c"}], False),
}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    texts = {}
    for name, (kind, values, is_read) in TYPES.items():
        table = pa.table({
            "Subject": ["a", "b"],
            "relation": ["r", "r"],
            "object": pa.array(values, kind),
            "question": ["p?", "q?"],
            "aliases": pa.array([[b"x"], ["y".encode()]], pa.list_(pa.binary())),
            "unread": pa.array([b"\xff", b"\xfe"]),
        })
        pq.write_table(table, OUT / f"{name}.parquet", compression="zstd" if name == "string" else "snappy")
        values = [v.decode() if isinstance(v, bytes) and is_read else v for v in table["object"].to_pylist()]
        texts[name] = [str(v) for v in values] if is_read else None
    (OUT / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
