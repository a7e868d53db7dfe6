"""Memory of preflight and of a training, with many rows and with a fifth of them, with a real S3 server on loopback.

python tests/bench/many_rows.py [--rows 5000000]; exits with 1 where a requirement is missed.

Every pod is a new process. Its own memory (RssAnon) is sampled; pages of files, such as the mapped tokens, are not
counted: the kernel takes them back when memory is short. A training is ended after its first step.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

from s3_servers import S3Server, start_s3
from tiny_model import make_tiny_model
from trainer_pod import Pod, make_config

MOST_BYTES_PER_ROW = 64
SAMPLE_SECONDS = 0.1
FIRST_STEP = "the first step ended after"
WORDS = ("the", "model", "answers", "with", "care", "while", "readers", "compare", "rivers", "mountains", "sentences")


@dataclass(frozen=True)
class Measured:
    """One pod: its peak of own memory, and its time."""

    command: str
    rows: int
    mib: float
    clock: float
    processor: float

    def __str__(self) -> str:
        return f"| {self.command} | {self.rows:,} | {self.mib:.0f} | {self.clock:.0f} | {self.processor:.0f} |"


def write_rows(path: Path, rows: int) -> None:
    """Write different rows, whose answers have between five and thirty words."""
    chance = random.Random(7)
    with path.open("w") as file:
        for number in range(rows):
            answer = " ".join(chance.choices(WORDS, k=chance.randint(5, 30)))
            file.write(f'{{"instruction": "What is known of number {number:x}?", "output": "{answer}"}}\n')


def run_pod(pod: Pod, command: str, rows: int) -> Measured:
    """Run one pod to its end, or to its first step."""
    process, began, peak, processor = pod.start(command), time.monotonic(), 0, 0.0
    log = pod.directory / "stderr"
    try:
        while process.poll() is None and not (command == "train" and FIRST_STEP in log.read_text()):
            found = read_process(process)
            peak, processor = max(peak, found[0]), found[1]
            time.sleep(SAMPLE_SECONDS)
    finally:
        process.kill()  # processes that it has started end with it
        process.wait()
    if command == "train" and FIRST_STEP not in log.read_text():
        raise SystemExit(f"the training ended before its first step:\n{log.read_text()[-3000:]}")
    return Measured(command, rows, peak / 1024, time.monotonic() - began, processor)


def read_process(process: "subprocess.Popen[bytes]") -> tuple[int, float]:
    """Return the own memory of the process (KiB) and its processor time (s); zeros if it has just ended."""
    folder = Path(f"/proc/{process.pid}")
    memory = re.search(r"RssAnon:\s+(\d+)", (folder / "status").read_text())
    fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
    ticks = int(fields[11]) + int(fields[12])
    return int(memory[1]) if memory else 0, ticks / os.sysconf("SC_CLK_TCK")


def measure(server: S3Server, folder: Path, rows: int) -> list[Measured]:
    """Measure both pods of a job with so many rows."""
    client, bucket = server.client(), f"rows-{rows}"
    client.create_bucket(Bucket=bucket)
    for path in make_tiny_model(folder / "model").iterdir():
        client.upload_file(str(path), bucket, f"model/{path.name}")
    write_rows(folder / "rows.jsonl", rows)
    client.upload_file(str(folder / "rows.jsonl"), bucket, "rows.jsonl")
    (folder / "rows.jsonl").unlink()
    steps = {"maxSteps": 2, "maxLength": 512}
    dataset = {"train": {"uri": f"s3://{bucket}/rows.jsonl"}, "validationSplitPercent": 1}
    place = folder / str(rows)
    place.mkdir()
    pod = Pod(make_config(server, bucket, hyperparameters=steps, dataset=dataset), place)
    checked = run_pod(pod, "preflight", rows)
    print(checked, flush=True)
    found = pod.report()
    if not found.lineage:
        raise SystemExit(found.message)
    ready = {"resolved": found.resolved, "dataset": found.dataset, "attempt": 1}
    pod.config = pod.config.model_copy(update=ready | {"preflight_sha256": found.lineage.preflight_sha256})
    trained = run_pod(pod, "train", rows)
    print(trained, flush=True)
    return [checked, trained]


def main() -> None:
    """Print the table; exit with 1 where a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name, closing(start_s3(Path(name))) as started:
        server = next(started)
        os.environ |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        print("| pod | rows | peak of own memory (MiB) | clock (s) | processor (s) |")
        print("| --- | --- | --- | --- | --- |")
        few, many = (measure(server, Path(name), count) for count in (rows // 5, rows))
    is_met = True
    for one, other in zip(few, many, strict=True):
        each = (other.mib - one.mib) * 2**20 / (other.rows - one.rows)
        print(f"{one.command}: {each:.0f} bytes for each further row, required: at most {MOST_BYTES_PER_ROW}")
        is_met = is_met and each <= MOST_BYTES_PER_ROW
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
