"""check-data on mixed rows, next to load_dataset("json") and map on the good ones, and a preflight of 100,000 rows.

python tests/bench/check_data.py [--rows 1000000] [--rounds 3] prints a table. Exit code 1: a required figure is missed.

Each process has a core of its own, and processor time is compared. On a shared machine that differs from minute to
minute, too: the two whose ratio is required run in turn, and the fastest run of each counts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from generate_rows import FORMATS

HERE = Path(__file__).parent
LEAST_ROWS_PER_SECOND = 30_000
MOST_MIB = 400
MOST_PREFLIGHT_SECONDS = 60
PREFLIGHT_ROWS = 100_000
MOST_FILTER_BYTES = 100


@dataclass(frozen=True)
class Measured:
    """One process from start to end."""

    name: str
    rows: int
    clock: float
    processor: float
    mib: float

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.processor

    def __str__(self) -> str:
        return (
            f"{self.name:<44}{self.rows:>10,}{self.clock:>9.1f}{self.processor:>9.1f}{self.rows_per_second:>10,.0f}"
            f"{self.mib:>7.0f}"
        )


def measure(name: str, rows: int, *command: object) -> Measured:
    """Run a command to its end on one core."""
    started = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
    said = process.stderr.read() if process.stderr else b""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}: {said.decode()[-2000:]}")
    measured = Measured(name, rows, time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
    print(measured, flush=True)
    return measured


def check_data(name: str, rows: int, files: Sequence[Path], *options: object) -> Measured:
    command = (Path(sys.executable).with_name("finetune-trainer"), "check-data", *files)
    return measure(name, rows, *command, "--out", files[0].parent / "checked", *options)


def generate(folder: Path, rows: int) -> int:
    """Write the rows in a process of its own, for a child's memory is counted from its parent's; return the good."""
    subprocess.run([sys.executable, HERE / "generate_rows.py", folder, "--rows", str(rows)], check=True)
    return sum(count_lines(file) for file in folder.glob("*.jsonl") if file.name != "mixed.jsonl")


def count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def compare(folder: Path, rows: int, rounds: int) -> list[str]:
    """Run everything; return what is required and was missed."""
    clean = generate(folder, rows)
    quarter = generate(folder / "quarter", rows // 4) and rows // 4
    prepared = generate(folder / "preflight", PREFLIGHT_ROWS) and PREFLIGHT_ROWS
    print(f"{(folder / 'mixed.jsonl').stat().st_size / 1e6:,.0f} MB in {rows:,} rows, {clean:,} of them good\n")
    print(f"{'':<44}{'rows':>10}{'clock s':>9}{'CPU s':>9}{'rows/s':>10}{'MiB':>7}")
    mixed = [folder / "mixed.jsonl"]
    ours = check_data("check-data", rows, mixed)
    small = check_data("check-data, a quarter of the rows", quarter, [folder / "quarter" / "mixed.jsonl"])
    check_data("check-data --to sharegpt", rows, mixed, "--to", "sharegpt")
    good = [folder / f"{name}.jsonl" for name in FORMATS]
    load = (sys.executable, HERE / "datasets_load.py", folder)
    pairs = [
        (
            check_data("check-data, the good rows alone", clean, good),
            measure("load_dataset, map in batches", clean, *load, 1000),
        )
        for _ in range(rounds)
    ]
    same, batched = (min(runs, key=lambda run: run.processor) for runs in zip(*pairs, strict=True))
    by_row = measure("load_dataset, map row by row", clean, *load, 1)
    preflight = measure(
        "preflight, every row tokenised", prepared, sys.executable, HERE / "preflight_rows.py", folder / "preflight"
    )
    grown = (ours.mib - small.mib) * (1 << 20) / (rows - quarter)
    by_batches, by_rows = (same.rows_per_second / other.rows_per_second for other in (batched, by_row))
    print(
        f"\ncheck-data is {by_batches:.2f} times as fast as load_dataset and map in batches on the same rows, "
        f"{by_rows:.2f} times as fast as row by row; its memory grows by {grown:.0f} bytes a row"
    )
    required = {
        f"check-data takes {LEAST_ROWS_PER_SECOND:,} rows/s": ours.rows_per_second >= LEAST_ROWS_PER_SECOND,
        f"check-data takes at most {MOST_MIB} MiB": ours.mib <= MOST_MIB,
        f"its memory grows by at most {MOST_FILTER_BYTES} bytes a row": grown <= MOST_FILTER_BYTES,
        "check-data is faster than load_dataset and map": by_batches > 1,
        f"preflight takes at most {MOST_PREFLIGHT_SECONDS} s": preflight.processor <= MOST_PREFLIGHT_SECONDS,
    }
    return [what for what, holds in required.items() if not holds]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        missed = compare(Path(scratch), chosen.rows, chosen.rounds)
    for what in missed:
        print(f"MISSED: {what}")
    sys.exit(1 if missed else 0)
