"""The same conversion as people write it with the datasets library: load_dataset("json"), then a map.

python tests/bench/datasets_load.py FOLDER ROWS_PER_CALL, where 1 calls the function for each row by itself. The
library's cache is of this process alone: with an earlier one it would convert nothing.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import load_dataset

SPEAKERS = {"human": "user", "gpt": "assistant"}
Row = dict[str, Any]


def from_alpaca(row: Row) -> Row:
    prompt = "\n".join(part for part in (row["instruction"], row["input"]) if part.strip())
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["output"]}]}


def from_sharegpt(row: Row) -> Row:
    return {"messages": [{"role": SPEAKERS[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]}


def from_openai(row: Row) -> Row:
    return {"messages": [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]}


def convert(folder: Path, cache: str, name: str, rows_per_call: int) -> int:
    convert_row = {"alpaca": from_alpaca, "sharegpt": from_sharegpt, "openai": from_openai}[name]
    rows = load_dataset("json", data_files=str(folder / f"{name}.jsonl"), split="train", cache_dir=cache)

    def convert_rows(batch: Row) -> Row:
        of_each = ({key: values[at] for key, values in batch.items()} for at in range(len(next(iter(batch.values())))))
        return {"messages": [convert_row(row)["messages"] for row in of_each]}

    batched = rows_per_call > 1
    return rows.map(
        convert_rows if batched else convert_row,
        batched=batched,
        batch_size=rows_per_call,
        remove_columns=[column for column in rows.column_names if column != "messages"],
    ).num_rows


if __name__ == "__main__":
    source, rows_per_call = Path(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=source) as cache:
        print(sum(convert(source, cache, name, rows_per_call) for name in ("alpaca", "sharegpt", "openai")))
