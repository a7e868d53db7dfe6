"""Try every architecture that transformers names for text, and write the table that preflight and documentation use.

python tests/architectures/matrix.py [NAME…] [--workers 2] [--fresh] [--no-write]

Each architecture runs in a fork of its own, with a time-out. Its result is appended to a file at once: a run that was
interrupted resumes with those that are left. NAME… repeats these architectures alone.
"""

# ruff: noqa: E402 - the import path, and what the libraries read when they are imported, come first

import argparse
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "fixtures")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers
from architecture_table import ROOT, build_table, named_architectures, write_table
from tiny_model import make_tiny_model

RESULTS = ROOT / "dist" / f"architectures-{transformers.__version__}.jsonl"
TIMEOUT_SECONDS = 300.0
LIBRARIES = (
    "trial", "peft.tuners.lora", "trl.trainer.sft_trainer", "trl.trainer.reward_trainer",
    "transformers.models.auto.modeling_auto",
)  # fmt: skip


@dataclass
class Fork:
    """A running trial."""

    name: str
    began: float
    answer: Path


def main() -> None:
    """Run what is left, and write the table when nothing is."""
    options = _options()
    if options.fresh:
        options.results.unlink(missing_ok=True)
    names = sorted(named_architectures())
    if unknown := sorted(set(options.names) - set(names)):
        sys.exit(f"transformers {transformers.__version__} does not name {', '.join(unknown)} for text")
    done = {} if options.names else read_results(options.results)
    left = [name for name in options.names or names if name not in done]
    print(f"{len(left)} of {len(names)} architectures, results in {options.results}", flush=True)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    if left:
        _run_all(left, options)
    results = read_results(options.results)
    if options.write and not set(names) - results.keys():
        write_table(build_table(results.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, help="seconds for one architecture")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true", help="forget the results of earlier runs")
    parser.add_argument(
        "--no-write", dest="write", action="store_false", help="leave table and documentation as they are"
    )
    return parser.parse_args()


def read_results(file: Path) -> dict[str, dict[str, Any]]:
    """Return the last result of each architecture; an incomplete last line is left out."""
    found: dict[str, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            result = json.loads(line)
        except ValueError:
            continue
        found[result["architecture"]] = result
    return found


def _run_all(names: Sequence[str], options: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore")
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()  # otherwise each collection of a fork visits, and so copies, the libraries' objects
    with tempfile.TemporaryDirectory() as folder, options.results.open("a", encoding="utf-8") as results:
        tokenizer = make_tiny_model(Path(folder) / "tokenizer")
        for at, result in enumerate(_results(names, tokenizer, Path(folder), options), 1):
            results.write(json.dumps(result) + "\n")
            results.flush()
            reason = f": {result['reason']}" if result["reason"] else ""
            print(f"[{at}/{len(names)}] {result['architecture']}: {result['result']} "
                  f"({result['seconds']} s){reason}", flush=True)  # fmt: skip


def _results(
    names: Sequence[str], tokenizer: Path, folder: Path, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield each result as it comes, from as many forks at a time as there are workers."""
    waiting, running = list(names), dict[int, Fork]()
    with _no_orphans(running):
        while waiting or running:
            while waiting and len(running) < options.workers:
                name = waiting.pop(0)
                answer = folder / f"{name}.json"
                running[_fork(name, tokenizer, folder / name, answer)] = Fork(name, time.monotonic(), answer)
            for pid, fork in list(running.items()):
                if time.monotonic() - fork.began > options.timeout:
                    os.kill(pid, signal.SIGKILL)
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                yield _read_answer(running.pop(pid), status, options.timeout)
            else:
                time.sleep(0.05)


@contextmanager
def _no_orphans(running: dict[int, Fork]) -> Iterator[None]:
    try:
        yield
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)


def _fork(name: str, tokenizer: Path, folder: Path, answer: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    log = os.open(answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    import shutil

    import torch
    from trial import try_architecture

    torch.set_num_threads(1)
    answer.write_text(json.dumps(asdict(try_architecture(name, tokenizer, folder))), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _read_answer(fork: Fork, status: int, timeout: float) -> dict[str, Any]:
    if fork.answer.is_file():
        found: dict[str, Any] = json.loads(fork.answer.read_text(encoding="utf-8"))
        return found
    from trial import Outcome

    code = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - fork.began
    reason = f"no result within {timeout:.0f} s" if seconds >= timeout else f"its process ended with {code}"
    return asdict(Outcome(fork.name, reason=reason, seconds=round(seconds, 1)))


if __name__ == "__main__":
    main()
