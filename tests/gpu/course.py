"""The course of the GPU suite: its sections one after the other, within a limit, and the page after every figure."""

import time
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from data import write_model
from machine import Machine, write_random_model
from measures import SECTIONS
from results import Fact, Figure, Section, is_missed, read_sections, render
from tiny_model import make_tiny_model

PACKAGES = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


def find_machine(scratch: Path) -> tuple[Machine, list[Fact]]:
    """Return the GPU with a model to train, and the facts that belong to its figures."""
    model = scratch / "model"
    machine = Machine(torch.device("cuda"), scratch, model, ranks=min(2, torch.cuda.device_count()))
    name = "SmolLM2-135M"
    try:
        write_model(model)
    except (ImportError, StopIteration):  # its package is only installed for the demo
        name = "a random model of the shape of SmolLM2-135M, with few tokens"
        write_random_model(machine, "135M", make_tiny_model(scratch / "tokenizer"), has_few_tokens=True).rename(model)
    facts = [("card", machine.name), ("GPUs", str(torch.cuda.device_count())), ("model", name)]
    return machine, facts + [(one, version(one)) for one in PACKAGES]


def measure(machine: Machine, facts: list[Fact], only: list[str], limit: float, page: Path) -> int:
    """Measure the sections, write the page after each figure, and return the exit code."""
    began = time.monotonic()
    earlier = read_sections(page, facts)
    done: list[Section] = []
    for title, run in SECTIONS.items():
        if only and not any(title.lower().startswith(one.lower()) for one in only):
            continue
        start, section = time.monotonic(), Section(title)
        done.append(section)
        for figure in within(run(machine), began + limit):
            print(f"{title}: {figure.name}: {figure.measured} [{figure.verdict}]", flush=True)
            section = Section(title, [*section.figures, figure], time.monotonic() - start)
            done[-1] = section
            page.write_text(render(facts, done, earlier), encoding="utf-8")
    return 1 if is_missed(done) else 0


def within(figures: Iterator[Figure], end: float) -> Iterator[Figure]:
    """Yield the figures until that time; an error ends its section alone."""
    try:
        while time.monotonic() < end:
            if (figure := next(figures, None)) is None:
                return
            yield figure
    except Exception as error:  # noqa: BLE001 - whatever a library raises is the result
        traceback.print_exc()
        yield Figure("all others", f"{type(error).__name__}: {error}"[:300], "no error", False)
        return
    yield Figure("all others", "not measured: the time limit")
