"""Rows of frozen dataclasses: from the program's JSON, to pandas, Arrow and HTML."""

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

# Arrow's name of each type that a column may have; a field of any other type is no column.
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

# Rows that a notebook shows.
SHOWN = 20


def frozen(value: Any) -> Any:
    """A JSON value with its lists as tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def from_json(kind: type[T], row: Mapping[str, Any]) -> T:
    """A dataclass from the JSON object that has its fields; what it has besides is passed over."""
    known: list[Any] = list(fields(kind))  # type: ignore[arg-type]
    optional = {field.name for field in known if field.default is not MISSING}
    names = [field.name for field in known if field.name in row or field.name not in optional]
    return kind(**{name: frozen(row[name]) for name in names})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file. A last line that is still being written is left out."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return json_lines(whole)


def json_lines(text: str) -> list[Any]:
    """The values of a text that has one on each line."""
    # Not splitlines(): it also ends lines at what may stand inside of a string, such as U+2028.
    return [json.loads(line) for line in text.split("\n") if line]


class Table:
    """What holds a row for each fact."""

    def _rows(self) -> tuple[type, Sequence[object]]:
        raise NotImplementedError

    def to_pandas(self) -> pd.DataFrame:
        """A row for each fact, as a `pandas.DataFrame`."""
        try:
            import pandas as pd  # noqa: PLC0415
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install 'unforget[pandas]'") from error
        kind, rows = self._rows()
        names = list(_columns(kind))
        table: pd.DataFrame = pd.DataFrame([[getattr(row, name) for name in names] for row in rows], columns=names)
        return table

    def to_arrow(self) -> pa.Table:
        """A row for each fact, as a `pyarrow.Table`; the columns' types do not depend on what is in them."""
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


def html_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for a notebook; every cell is escaped."""

    def row(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell_text(cell))}</{tag}>" for cell in cells) + "</tr>"

    return (
        f"<table><thead>{row(heads, 'th')}</thead><tbody>{''.join(row(cells, 'td') for cells in rows)}</tbody></table>"
    )


def html_line(text: str) -> str:
    """A paragraph for a notebook, escaped."""
    return f"<p>{escape(text)}</p>"


def cell_text(value: object) -> str:
    """A value as a cell shows it: shares with three places, nothing for none."""
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    """A share, 0 to 1, in percent."""
    return f"{100 * share:.1f}%"
