"""Frozen dataclasses as rows: read from the program's JSON, converted to pandas, Arrow and HTML."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from html import escape
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa

T = TypeVar("T")

# The Arrow type of each column type. Fields of other types are not exported as columns.
_COLUMNS = {
    "bool": "bool_",
    "int": "int64",
    "float": "float64",
    "str": "string",
    "float | None": "float64",
    "str | None": "string",
    "tuple[bool, ...]": "bool_",
    "tuple[str, ...]": "string",
}

# Rows that a notebook displays.
MAX_ROWS = 20


def frozen(value: Any) -> Any:
    """A JSON value with lists converted to tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def from_json(kind: type[T], row: Mapping[str, Any]) -> T:
    """A dataclass from a JSON object. Keys that are not fields are ignored."""
    known: list[Any] = list(fields(kind))  # type: ignore[arg-type]
    optional = {field.name for field in known if field.default is not MISSING}
    names = [field.name for field in known if field.name in row or field.name not in optional]
    return kind(**{name: frozen(row[name]) for name in names})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, without a last line that is still being written."""
    complete, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return json_lines(complete)


def json_lines(text: str) -> list[Any]:
    """The values of a text with one JSON value per line."""
    # Not splitlines(): it also splits at characters that are allowed inside a string, such as U+2028.
    return [json.loads(line) for line in text.split("\n") if line]


class Table:
    """A result with one row per fact."""

    def _rows(self) -> tuple[type, Sequence[object]]:
        raise NotImplementedError

    def to_pandas(self) -> pd.DataFrame:
        """One row per fact, as a `pandas.DataFrame`."""
        try:
            import pandas as pd  # noqa: PLC0415
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install 'unforget[pandas]'") from error
        kind, rows = self._rows()
        names = list(_columns(kind))
        table: pd.DataFrame = pd.DataFrame([[getattr(row, name) for name in names] for row in rows], columns=names)
        return table

    def to_arrow(self) -> pa.Table:
        """One row per fact, as a `pyarrow.Table`. The column types do not depend on the values."""
        try:
            import pyarrow as pa  # noqa: PLC0415
        except ImportError as error:
            raise ImportError("to_arrow() needs pyarrow: pip install 'unforget[arrow]'") from error
        kind, rows = self._rows()
        columns = _columns(kind)

        def typed(annotation: str) -> Any:
            inner = getattr(pa, _COLUMNS[annotation])()
            return pa.list_(inner) if annotation.startswith("tuple") else inner

        schema = pa.schema([(name, typed(annotation)) for name, annotation in columns.items()])
        return pa.Table.from_pylist([{name: getattr(row, name) for name in columns} for row in rows], schema=schema)


def _columns(kind: Any) -> dict[str, str]:
    return {field.name: field.type for field in fields(kind) if field.type in _COLUMNS}


def html_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for a notebook; every cell is escaped."""

    def row(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell_text(cell))}</{tag}>" for cell in cells) + "</tr>"

    return (
        f"<table><thead>{row(headers, 'th')}</thead>"
        f"<tbody>{''.join(row(cells, 'td') for cells in rows)}</tbody></table>"
    )


def html_line(text: str) -> str:
    """A paragraph for a notebook, escaped."""
    return f"<p>{escape(text)}</p>"


def cell_text(value: object) -> str:
    """A value as a table cell: floats with three decimals, an empty cell for None."""
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def percent(fraction: float) -> str:
    """A fraction, 0 to 1, in percent."""
    return f"{100 * fraction:.1f}%"
