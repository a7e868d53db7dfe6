"""Measure on a GPU what no CPU can show, and write tests/gpu/RESULTS.md with the card's name.

python tests/gpu/suite.py [--require] [--only NAME…]; exits with 1 if a requirement is missed.

Without a GPU nothing is measured and nothing is written: the suite prints why and exits with 0, with --require with 1.
"""

# ruff: noqa: E402 - the import path, and what the libraries read when they are imported, come first

import argparse
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("fixtures", "demo", "bench"))]

import torch

RESULTS = HERE / "RESULTS.md"
LIMIT_SECONDS = 600
PACKAGES = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


def main() -> None:
    """Run every section within the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--require", action="store_true", help="fail without a GPU")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="sections, by the start of their title")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        explain_skip()
        sys.exit(1 if options.require else 0)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(measure(Path(folder), options.only))


def explain_skip() -> None:
    """Print that nothing was measured."""
    line = "SKIPPED: this machine has no CUDA device, so nothing of the GPU suite was measured"
    print(f"{'=' * len(line)}\n{line}\n{'=' * len(line)}", flush=True)


def measure(scratch: Path, only: list[str]) -> int:
    """Measure the sections, write the results after each, and return the exit code."""
    from data import write_model
    from machine import Machine, write_random_model
    from measures import SECTIONS
    from results import Figure, Section, is_missed, render
    from tiny_model import make_tiny_model

    began, model = time.monotonic(), scratch / "model"
    machine = Machine(torch.device("cuda"), scratch, model, ranks=min(2, torch.cuda.device_count()))
    name = "SmolLM2-135M"
    try:
        write_model(model)
    except (ImportError, StopIteration):  # its package is only installed for the demo
        name = "a random model of the shape of SmolLM2-135M"
        write_random_model(machine, "135M", make_tiny_model(scratch / "tokenizer")).rename(model)
    facts = [("card", machine.name), ("GPUs", str(torch.cuda.device_count())), ("model", name)]
    facts += [(one, version(one)) for one in PACKAGES]
    done: list[Section] = []
    for title, run in SECTIONS.items():
        if only and not any(title.lower().startswith(one.lower()) for one in only):
            continue
        if time.monotonic() - began > LIMIT_SECONDS:
            done.append(Section(title, [Figure("all", f"not measured: {LIMIT_SECONDS} s were over")]))
            RESULTS.write_text(render(facts, done), encoding="utf-8")
            continue
        start, figures = time.monotonic(), []
        for figure in run(machine):
            print(f"{title}: {figure.name}: {figure.measured} [{figure.verdict}]", flush=True)
            figures.append(figure)
        done.append(Section(title, figures, time.monotonic() - start))
        RESULTS.write_text(render(facts, done), encoding="utf-8")
    return 1 if is_missed(done) else 0


if __name__ == "__main__":
    main()
