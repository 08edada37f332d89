"""Reads tables by pandas, for the comparison with generated ones.

    pip install pandas
    python read_tables.py CASES.json    # [{"text": ..., "separator": ...}]; prints a JSON list of rows, null for an error
"""

import io
import json
import sys

import pandas as pd


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        cases = json.load(file)
    read = []
    for case in cases:
        try:
            table = pd.read_csv(io.BytesIO(case["text"].encode()), sep=case["separator"], dtype=str, na_filter=False, index_col=False)
            read.append([list(row) for row in table.itertuples(index=False)])
        except Exception:
            read.append(None)
    json.dump(read, sys.stdout)


if __name__ == "__main__":
    main()
