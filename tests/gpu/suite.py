"""Measure on a GPU what no CPU can show, and write tests/gpu/RESULTS.md with the card's name.

python tests/gpu/suite.py [--require] [--only NAME…] [--limit SECONDS] [--results FILE]; exits with 1 if a requirement
is missed. The page is written after every figure, and keeps the sections that were measured on the same card with the
same versions before. The project need not be installed, only the libraries of the trainer.

Without a GPU nothing is measured and nothing is written: the suite prints why and exits with 0, with --require with 1.
"""

# ruff: noqa: E402 - the import path, and what the libraries read when they are imported, come first

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
HERE = Path(__file__).parent
PROJECT = [str(HERE.parents[1] / name / "src") for name in ("crds", "operator", "trainer_image")]
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("fixtures", "demo", "bench")), *PROJECT]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*PROJECT, os.environ.get("PYTHONPATH")]))  # of the processes

import torch

RESULTS = HERE / "RESULTS.md"
LIMIT_SECONDS = 600


def main() -> None:
    """Run every section within the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--require", action="store_true", help="fail without a GPU")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="sections, by the start of their title")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_SECONDS, metavar="SECONDS", help="for all, default %(default)s"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FILE", help="the page, default tests/gpu/RESULTS.md"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        explain_skip()
        sys.exit(1 if options.require else 0)
    from course import find_machine, measure  # after the skip, which needs none of their libraries

    with tempfile.TemporaryDirectory() as folder:
        machine, facts = find_machine(Path(folder))
        sys.exit(measure(machine, facts, options.only, options.limit, options.results))


def explain_skip() -> None:
    """Print that nothing was measured."""
    line = "SKIPPED: this machine has no CUDA device, so nothing of the GPU suite was measured"
    print(f"{'=' * len(line)}\n{line}\n{'=' * len(line)}", flush=True)


if __name__ == "__main__":
    main()
