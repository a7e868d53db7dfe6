"""The trainer pod as a process: stopped in mid-run, run again, its lost report found again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import Artifact, JobConfig, Outcome, ProgressReport, Report, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.publish import verify
from finetune_trainer.s3 import S3Storage
from finetune_trainer.s3_client import connect

TINY_MODEL = Path(__file__).parents[2] / "fixtures" / "tiny_model.py"


class Pod:
    """One job's pods, started one after another."""

    def __init__(self, config: JobConfig, directory: Path) -> None:
        self.config, self.directory = config, directory
        self.log = directory / "termination-log"
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            self.port = reserved.getsockname()[1]

    def start(self, command: str) -> "subprocess.Popen[bytes]":
        (self.directory / "config.json").write_text(self.config.model_dump_json(by_alias=True))
        self.log.write_text("")
        arguments = [
            sys.executable, "-m", "finetune_trainer", command, "--config", str(self.directory / "config.json"),
            "--workspace", str(self.directory / f"workspace-{time.monotonic_ns()}"), "--port", str(self.port),
            "--termination-log", str(self.log),
        ]  # fmt: skip
        with (self.directory / "stderr").open("wb") as errors:
            return subprocess.Popen(
                arguments, stdout=subprocess.DEVNULL, stderr=errors, env=os.environ | {"NO_PROXY": "127.0.0.1"}
            )

    def report(self) -> Report:
        return Report.model_validate_json(self.log.read_text())

    def progress(self) -> ProgressReport | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/progress", timeout=2) as answer:
                return ProgressReport.model_validate_json(answer.read())
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return None

    def wait_for_step(self, process: "subprocess.Popen[bytes]", step: int) -> ProgressReport:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert process.poll() is None, (self.directory / "stderr").read_text()
            seen = self.progress()
            if seen and (seen.progress.step or 0) >= step:
                return seen
            time.sleep(0.1)
        raise AssertionError("no step was seen within five minutes")


@pytest.fixture
def pod(s3_server: Any, bucket: str, tmp_path: Path, aws_environment: None) -> Pod:
    storage = S3Storage(connect(s3_server.spec()))
    subprocess.run([sys.executable, str(TINY_MODEL), str(tmp_path / "model")], check=True, timeout=120)
    for path in (tmp_path / "model").iterdir():
        storage.upload(path, f"s3://{bucket}/model/{path.name}")
    rows = [{"instruction": f"Is {index} even?", "output": "yes" if index % 2 == 0 else "no"} for index in range(80)]
    storage.put(f"s3://{bucket}/rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "storage": {"endpoint": s3_server.endpoint},
            "model": {"uri": f"s3://{bucket}/model"},
            "tuning": {"method": "LoRA", "lora": {"rank": 2}},
            "dataset": {"train": {"uri": f"s3://{bucket}/rows.jsonl"}},
            "hyperparameters": {"maxSteps": 60, "maxLength": 64, "gradientAccumulationSteps": 1},
            "output": {"uri": f"s3://{bucket}/out"},
        }
    )
    config = JobConfig(namespace="team", name="job", uid="uid-1", config_sha256=config_sha256(spec), spec=spec)
    pod = Pod(config, tmp_path)
    process = pod.start("preflight")
    assert process.wait(120) == 0, (tmp_path / "stderr").read_text()
    checked = pod.report()
    pod.config = config.model_copy(update={"resolved": checked.resolved, "dataset": checked.dataset, "attempt": 1})
    return pod


def test_a_stopped_trainer_publishes_nothing_and_the_next_one_finishes(pod: Pod, s3_server: Any) -> None:
    storage, prefix = S3Storage(connect(s3_server.spec())), pod.config.output_key()

    process = pod.start("train")
    seen = pod.wait_for_step(process, 2)
    assert seen.job_uid == "uid-1"
    assert seen.progress.total_steps == 60
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75, (pod.directory / "stderr").read_text()
    stopped = pod.report()
    assert (stopped.outcome, stopped.reason) == (Outcome.PREEMPTED, "Preempted")
    assert stopped.last_step is not None
    assert 2 <= stopped.last_step < 60
    assert storage.read(f"{prefix}/{Artifact.MANIFEST}") is None

    process = pod.start("train")
    assert process.wait(600) == 0, (pod.directory / "stderr").read_text()
    published = pod.report()
    assert (published.outcome, published.last_step) == (Outcome.PUBLISHED, 60)
    assert published.artifacts is not None
    assert published.artifacts.manifest_sha256 == storage.sha256(f"{prefix}/{Artifact.MANIFEST}")
    assert verify(prefix, storage) == []

    # Storage alone tells; a second training would write other throughput figures into another manifest.
    process = pod.start("train")
    assert process.wait(60) == 0
    again = pod.report()
    assert again.outcome is Outcome.PUBLISHED
    assert again.artifacts == published.artifacts
