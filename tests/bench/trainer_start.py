"""From the start of a pod's process to its verdict or to its first step, in phases, with a real S3 server on loopback.

python tests/bench/trainer_start.py [--only preflight|LoRA]; exits with 1 where a requirement is missed.

Every pod is a new process, as in a container; after the first one, what it reads from the disk is in the page cache, as
on a warm node. Its log has the phases, which are printed as a table; then the pod is ended. The model is tiny, so the
libraries are most of it. What is required is processor time of the process: other work on the machine does not change
it as it changes the clock's.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

from s3_servers import S3Server, start_s3
from tiny_model import make_tiny_model
from trainer_pod import Pod, make_config

MOST_SECONDS_OF_PREFLIGHT = 5.0
END_SECONDS = 600.0
POLL_SECONDS = 0.5
ROWS = 1_000
SUMMARY = re.compile(r"(checked|the first step ended) after ([\d.]+) s \(([\d.]+) s of processor time\): (.+)")
PHASE = re.compile(r"([a-z ]+) ([\d.]+) \(([\d.]+)\)")
TRAININGS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "QLoRA": {"tuning": {"method": "QLoRA", "lora": {"rank": 2}}},
    "Full": {"tuning": {"method": "Full"}},
    "two processes": {"resources": {"gpusPerNode": 2}},
}


@dataclass(frozen=True)
class Start:
    """How long one pod took, in phases: seconds by the clock and by the processor."""

    name: str
    clock: float
    processor: float
    phases: dict[str, tuple[float, float]]

    def lines(self) -> Iterator[str]:
        """Its lines of the table."""
        for phase, (clock, processor) in self.phases.items():
            yield f"| {self.name} | {phase} | {clock:.1f} | {processor:.1f} |"
        yield f"| {self.name} | **sum** | {self.clock:.1f} | {self.processor:.1f} |"


def read_start(name: str, log: str) -> Start:
    """Return the times and phases in the pod's log."""
    found = SUMMARY.search(log)
    if not found:
        raise SystemExit(f"{name} logged no phases:\n{log[-3000:]}")
    phases = {phase.strip(): (float(clock), float(processor)) for phase, clock, processor in PHASE.findall(found[4])}
    return Start(name, float(found[2]), float(found[3]), phases)


def run_pod(pod: Pod, command: str) -> str:
    """Run one pod until its phases are in its log, which is returned."""
    process, deadline = pod.start(command), time.monotonic() + END_SECONDS
    try:
        while time.monotonic() < deadline:
            is_running = process.poll() is None
            log = (pod.directory / "stderr").read_text()
            if not is_running or (command == "train" and SUMMARY.search(log)):
                return log
            time.sleep(POLL_SECONDS)
    finally:
        process.kill()  # processes that it has started end with it
        process.wait()
    raise SystemExit(f"{command} took {END_SECONDS:.0f} s:\n{log[-3000:]}")


def make_bucket(server: S3Server, folder: Path) -> str:
    """A bucket with the tiny model and rows."""
    client = server.client()
    client.create_bucket(Bucket="bench")
    for path in make_tiny_model(folder / "model").iterdir():
        client.upload_file(str(path), "bench", f"model/{path.name}")
    rows = ({"instruction": f"Is {number} even?", "output": "no" if number % 2 else "yes"} for number in range(ROWS))
    client.put_object(Bucket="bench", Key="rows.jsonl", Body="".join(json.dumps(row) + "\n" for row in rows).encode())
    return "bench"


def measure(server: S3Server, bucket: str, folder: Path, only: str) -> Iterator[Start]:
    """Preflight and training of each kind."""
    for number, (name, changes) in enumerate(TRAININGS.items()):
        steps = {"maxSteps": 2, "maxLength": 64, "gradientAccumulationSteps": 1}
        output = {"uri": f"s3://{bucket}/out-{number}"}
        config = make_config(server, bucket, hyperparameters=steps, output=output, **changes)
        place = folder / str(number)
        place.mkdir()
        pod = Pod(config, place)
        checked = read_start(f"preflight, {ROWS:,} rows", run_pod(pod, "preflight"))
        if number == 0:
            yield checked
        if only == "preflight":
            return
        found = pod.report()
        bound = found.lineage.preflight_sha256 if found.lineage else None
        ready = {"resolved": found.resolved, "dataset": found.dataset, "preflight_sha256": bound, "attempt": 1}
        pod.config = config.model_copy(update=ready)
        yield read_start(f"train, {name}", run_pod(pod, "train"))
        if only == name:
            return


def main() -> None:
    """Print the table; exit with 1 where a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["preflight", "LoRA"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, closing(start_s3(Path(name))) as started:
        server = next(started)
        os.environ |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        bucket, starts = make_bucket(server, Path(name)), []
        print("| pod | phase | clock (s) | processor (s) |")
        print("| --- | --- | --- | --- |")
        for start in measure(server, bucket, Path(name), arguments.only or ""):
            starts.append(start)
            print(*start.lines(), sep="\n", flush=True)
    checked = starts[0].processor
    print(f"preflight: {checked:.1f} s of processor time, required: at most {MOST_SECONDS_OF_PREFLIGHT:.0f} s")
    sys.exit(0 if checked <= MOST_SECONDS_OF_PREFLIGHT else 1)


if __name__ == "__main__":
    main()
