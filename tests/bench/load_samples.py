"""Seconds and memory in which a training process gets its samples: from preflight's files of tokens, and by encoding.

python tests/bench/load_samples.py [--rows 20000]; exits with 1 where reading is not several times faster.

Each way runs in a process of its own, which has checked the model's files before. The memory is what the process gains:
its own pages, and those of mapped files, which all processes of a pod share.
"""

import argparse
import io
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

from generate_rows import generate
from tiny_model import make_tiny_model

from finetune_api.handoff import Artifact, JobConfig, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.pipeline.inputs import load_inputs
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.local import LocalStore

LEAST_RATIO = 4.0


def make_run(folder: Path) -> RunContext:
    """The job whose rows and model are in the folder."""
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": "s3://bucket/model"},
            "dataset": {"train": {"uri": "s3://bucket/mixed.jsonl"}, "validationSplitPercent": 1},
            "hyperparameters": {"maxLength": 1024},
            "output": {"uri": "s3://bucket/output"},
        }
    )
    config = JobConfig(namespace="bench", name="job", uid="uid", config_sha256=config_sha256(spec), spec=spec)
    storage = LocalStore({"s3://bucket": folder})
    return RunContext(config, storage, folder / "workspace", Reporter("uid", out=io.StringIO()), StopFlag())


def memory_kib() -> dict[str, int]:
    """This process's pages, its own and those of files."""
    status = Path("/proc/self/status").read_text()
    return {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("RssAnon", "RssFile")}  # type: ignore[index]


def measure(folder: Path) -> dict[str, float]:
    """Load the samples and read each once, as an epoch does."""
    run = make_run(folder)
    before, began, clock = memory_kib(), time.process_time(), time.perf_counter()
    inputs = load_inputs(run)
    loaded, elapsed = time.process_time() - began, time.perf_counter() - clock
    tokens = sum(len(sample.input_ids) for sample in inputs.train)  # type: ignore[union-attr]
    after = memory_kib()
    return {"samples": len(inputs.train), "tokens": tokens, "seconds": loaded, "clock": elapsed} | {
        name: (after[name] - before[name]) / 1024 for name in before
    }


def remove_tokens(folder: Path) -> None:
    """Leave what a preflight without files of tokens leaves."""
    path = folder / "output" / Artifact.DATASET_SUMMARY
    summary = json.loads(path.read_text())
    summary["files"] = [file for file in summary["files"] if not file["path"].endswith(".arrow")]
    path.write_text(json.dumps(summary))


def in_process(folder: Path) -> dict[str, float]:
    """The measurement of a new process."""
    command = [sys.executable, __file__, "--measure", str(folder)]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return found


def compare(folder: Path, rows: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return both measurements after one preflight."""
    generate(folder, rows, 7)
    make_tiny_model(folder / "model")
    (folder / "workspace").mkdir()
    preflight(make_run(folder))
    read = in_process(folder)
    remove_tokens(folder)
    return read, in_process(folder)


def main() -> None:
    """Print the table; exit with 1 if the ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        read, encoded = compare(Path(directory), arguments.rows)
    for name, one in (("read", read), ("encoded", encoded)):
        print(f"{name:<8} " + "  ".join(f"{key} {value:,.1f}" for key, value in one.items()))
    ratio = encoded["seconds"] / read["seconds"]
    print(f"reading is {ratio:.1f} times as fast, required {LEAST_RATIO}")
    sys.exit(0 if ratio >= LEAST_RATIO else 1)


if __name__ == "__main__":
    main()
