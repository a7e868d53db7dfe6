"""Measure what hostile files cost: CPU time and memory for each byte of input, and how both grow with the file.

python tests/fuzz/costs.py [--seconds 60] [--seed 1]; needs no fuzzer. A file repeats random fragments of the formats,
with a beginning and an end of their own, at a size and at eight times that size. It prints the most expensive ones, and
exits 1 if one exceeds the budget or grows faster than the file.
"""

import argparse
import itertools
import logging
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from finetune_trainer.data.checks.pipeline import check_rows
from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.rows import NamedPath, UnreadableFile

BYTES = 1 << 13
GROWTH = 8
MAX_MICROSECONDS, MAX_MEMORY = 60.0, 300.0
"""Budget for each byte of input: CPU time in µs, and memory at its peak in bytes."""
MAX_RATIO = 3.0
"""Cost for each byte at eight times the size, by the cost at the size: 8 if it grows with the square."""
NAMES = ("rows.jsonl", "rows.json", "rows.csv", "rows.tsv")
OBJECTIVES = (None, "Chat", "DPO", "KTO", "RLHF", "DomainAdaptation")
FRAGMENTS = (
    b"[", b"]", b"{", b"}", b'"', b",", b":", b"\n", b"\t", b"\\", b"\\u0022", b"\\ud800", b"'", b"(", b"()", b" ",
    b";", b"\r", b"\0", b'""', b'"a",', b'{"a":', b'\n"', b"\n{", b"1", b"-", b"1e", b"null,", b"true", b"a,b\n",
    b"'a': ", b"\xc3\xa9", b"\xff", b"\xf0\x9f\xa6\x8a", b"<think>", b"</think>", b"\n\nHuman: ", b"\n\nAssistant: ",
    b'{"messages":[', b'{"role":"user","content":"q"},', b'{"role":"assistant","content":"a"},', b'[{"text":"',
    b'{"text":"x"}\n', b'{"prompt":"', b'","chosen":"', b'","rejected":"', b'"}\n', b'{"data":[', b'"tool_calls":[',
)  # fmt: skip


class Cost(NamedTuple):
    """What one file costs for each of its bytes."""

    microseconds: float
    memory: float


def measure(path: Path, objective: str | None) -> Cost:
    """Return what checking the file costs, with memory from a run of its own."""
    began = time.process_time()
    check(path, objective)
    took = time.process_time() - began
    tracemalloc.start()
    check(path, objective)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = path.stat().st_size
    return Cost(1e6 * took / size, peak / size)


def check(path: Path, objective: str | None) -> None:
    """Read and check every row."""
    try:
        for _ in check_rows([NamedPath(path, path.name)], summary=Summary(), objective=objective):
            pass
    except UnreadableFile:
        return


def files(seed: int) -> Iterator[tuple[str, str | None, bytes, bytes, bytes]]:
    """Yield name, objective, beginning, what is repeated, and an end that is repeated as often."""
    chance = random.Random(seed)
    while True:
        begin, middle, end = (b"".join(chance.choices(FRAGMENTS, k=chance.randint(least, 3))) for least in (0, 1, 0))
        yield chance.choice(NAMES), chance.choice(OBJECTIVES), begin, middle, end


def main() -> int:
    """Measure until the time is over; return 1 if a file exceeds the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable()
    ends = time.monotonic() + options.seconds
    found = []
    with tempfile.TemporaryDirectory(prefix="costs-") as folder:
        for name, objective, begin, middle, end in itertools.takewhile(
            lambda _: time.monotonic() < ends, files(options.seed)
        ):
            path, costs = Path(folder) / name, []
            for size in (BYTES, GROWTH * BYTES):
                times = size // (len(middle) + len(end)) + 1
                path.write_bytes(begin + middle * times + end * times)
                costs.append(measure(path, objective))
            found.append((costs[1], costs[0], name, objective, begin, middle, end))
    found.sort(reverse=True)
    print(f"{len(found)} files of {BYTES >> 10} and {GROWTH * BYTES >> 10} KiB; for each byte of the larger:")
    for kind, index in (("CPU time in µs", 0), ("memory in bytes", 1)):
        costs = sorted(one[0][index] for one in found)
        print(f"  {kind}: median {costs[len(costs) // 2]:.2f}, highest {costs[-1]:.2f}")
    faults = [one for one in found if is_too_expensive(one[0], one[1])]
    for large, small, *what in faults or found[:3]:
        print(f"  {large.microseconds:8.2f} µs (before {small.microseconds:.2f}) {large.memory:7.1f} B  {what}")
    print(f"{len(faults)} above the budget of {MAX_MICROSECONDS:g} µs and {MAX_MEMORY:g} B, or growing with the square")
    return 1 if faults else 0


def is_too_expensive(large: Cost, small: Cost) -> bool:
    """Return whether a file exceeds the budget, or costs more for each byte the larger it is."""
    grows = large.microseconds > MAX_RATIO * small.microseconds and large.microseconds > MAX_MICROSECONDS / 4
    return grows or large.microseconds > MAX_MICROSECONDS or large.memory > MAX_MEMORY


if __name__ == "__main__":
    sys.exit(main())
