"""Writes a file of mixed rows from a seed: the formats people have, and a few rows with each common fault.

python tests/bench/generate_rows.py FOLDER --rows 1000000 --seed 7
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

TEXT = """
the model answers a question about rivers and mountains with care while readers compare each careful sentence to
what they know of trade history water language numbers music law weather machines gardens cities bread
light memory Straße naïve 東京 Ελλάδα the of and to in is that for it as was with be by on not he his
"""
FORMATS = ("alpaca", "sharegpt", "openai")
BAD_SHARE = 0.02
Row = dict[str, Any]


class Writer:
    """Draws rows; a text is cut from one long shuffled text, which is what makes a million of them quick."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        words = TEXT.split()
        self._words = [self.chance.choice(words) for _ in range(20_000)]
        self._number = 0

    def text(self, words: int) -> str:
        self._number += 1
        start = self.chance.randrange(len(self._words) - 200)
        size = self.chance.randrange(words // 2, words + words // 2)
        return f"{self._number:x} " + " ".join(self._words[start : start + size])

    def row(self, name: str) -> Row:
        return _ROWS[name](self)

    def bad_line(self) -> bytes:
        return self.chance.choice(_BAD)(self.row(self.chance.choice(FORMATS)))


def _alpaca(writer: Writer) -> Row:
    return {
        "instruction": writer.text(14),
        "input": writer.chance.choice(("", writer.text(20))),
        "output": writer.text(45),
    }


def _sharegpt(writer: Writer) -> Row:
    count = writer.chance.choice((2, 2, 4, 6))
    turns = [{"from": ("human", "gpt")[at % 2], "value": writer.text(20)} for at in range(count)]
    return {"id": str(writer.chance.randrange(1 << 40)), "conversations": turns}


def _openai(writer: Writer) -> Row:
    system = [{"role": "system", "content": writer.text(8)}] if writer.chance.random() < 0.3 else []
    count = writer.chance.choice((2, 2, 4))
    turns = [{"role": ("user", "assistant")[at % 2], "content": writer.text(22)} for at in range(count)]
    return {"messages": system + turns}


_ROWS: dict[str, Callable[[Writer], Row]] = {"alpaca": _alpaca, "sharegpt": _sharegpt, "openai": _openai}
_REPEATED = orjson.dumps({"instruction": "said twice", "input": "", "output": "the same"})
_BAD: tuple[Callable[[Row], bytes], ...] = (
    lambda row: orjson.dumps(row)[:-9],
    lambda row: orjson.dumps(row)[:40] + b'\xff"}',
    lambda row: orjson.dumps(dict.fromkeys(row, None)),
    lambda row: orjson.dumps(list(row)),
    lambda row: b'{"output": "first", ' + orjson.dumps(row)[1:-1] + b', "output": "second"}',
    lambda _row: _REPEATED,
    lambda _row: orjson.dumps({"title": "no format", "body": "at all"}),
    lambda row: orjson.dumps({"messages": [{"role": "narrator", "content": str(row)[:80]}]}),
)


def generate(folder: Path, rows: int, seed: int) -> None:
    """Write mixed.jsonl, and its good rows once more, as one file for each format."""
    writer = Writer(seed)
    folder.mkdir(parents=True, exist_ok=True)
    clean = {name: (folder / f"{name}.jsonl").open("wb") for name in FORMATS}
    with (folder / "mixed.jsonl").open("wb") as mixed:
        for _ in range(rows):
            if writer.chance.random() < BAD_SHARE:
                mixed.write(writer.bad_line() + b"\n")
                continue
            name = writer.chance.choice(FORMATS)
            line = orjson.dumps(writer.row(name), option=orjson.OPT_APPEND_NEWLINE)
            mixed.write(line)
            clean[name].write(line)
    for file in clean.values():
        file.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    generate(arguments.folder, arguments.rows, arguments.seed)
