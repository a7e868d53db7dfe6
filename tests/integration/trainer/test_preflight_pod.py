"""The preflight pod as a process: a mounted configuration, a real S3 server, a termination log."""

import gzip
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub import Hub
from published_result import find_result_faults
from safetensors.numpy import save
from tiny_model import make_tiny_model
from trainer_world import TEMPLATE, make_tokenizer_json

from finetune_api.handoff import JobConfig, Outcome, Report, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.publishing.publish import publish
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import connect_s3


def rows(count: int, malformed_every: int = 10) -> Iterator[str]:
    for index in range(count):
        if index % malformed_every == 5:
            yield "{ not json"
        else:
            yield json.dumps({"instruction": f"what is {index} plus one", "output": str(index + 1)})


class Job:
    """A job in a bucket of its own."""

    def __init__(self, server: Any, bucket: str, directory: Path, python: str) -> None:
        self.server, self.bucket, self.directory, self.python = server, bucket, directory, python
        self.storage = S3Store(connect_s3(server.spec()))
        self.put("model/config.json", json.dumps({"architectures": ["LlamaForCausalLM"]}))
        self.put("model/tokenizer.json", make_tokenizer_json())
        self.put("model/tokenizer_config.json", json.dumps({"eos_token": "<|im_end|>", "chat_template": TEMPLATE}))
        self.put("model/model.safetensors", save({"a": np.zeros((3, 5), dtype=np.float32)}))
        self.put("rows.jsonl", "\n".join(rows(200)))
        self.config = self.make_config()

    def put(self, key: str, content: str | bytes) -> None:
        self.storage.put(f"s3://{self.bucket}/{key}", content.encode() if isinstance(content, str) else content)

    def make_config(self, *, name: str = "job", uid: str = "uid-1", **changes: Any) -> JobConfig:
        spec = FineTuneJobSpec.model_validate(
            {
                "objective": "Chat",
                "storage": {"endpoint": self.server.endpoint},
                "model": {"uri": f"s3://{self.bucket}/model"},
                "dataset": {
                    "train": {"uri": f"s3://{self.bucket}/rows.jsonl"},
                    "validationSplitPercent": 15,
                },
                "hyperparameters": {"maxLength": 128},
                "output": {"uri": f"s3://{self.bucket}/out"},
            }
            | changes
        )
        self.config = JobConfig(namespace="team", name=name, uid=uid, config_sha256=config_sha256(spec), spec=spec)
        return self.config

    def preflight(self, **environment: str) -> tuple[int, Report, int]:
        """Return exit code, report and peak resident memory (KiB) of a preflight pod's process."""
        (self.directory / "config.json").write_text(self.config.model_dump_json(by_alias=True))
        log = self.directory / "termination-log"
        log.write_text("")
        output = self.directory / "output"
        with output.open("w") as file:
            process = subprocess.Popen(
                [
                    self.python, "-m", "finetune_trainer", "preflight",
                    "--config", str(self.directory / "config.json"), "--workspace", str(self.directory / "workspace"),
                    "--port", "0", "--termination-log", str(log),
                ],
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            peak = watch_memory(process)
        assert log.read_text(), output.read_text()
        assert "Traceback" not in output.read_text(), output.read_text()
        return process.returncode, Report.model_validate_json(log.read_text()), peak


def watch_memory(process: "subprocess.Popen[bytes]") -> int:
    """Wait for the end; return the peak (KiB). The kernel's `ru_maxrss` includes the parent's memory at the fork."""
    peak = 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        peak = max(peak, int(found[1])) if found else peak
        time.sleep(0.02)
    return peak


@pytest.fixture
def job(s3_server: Any, bucket: str, tmp_path: Path, aws_environment: None, trainer_python: str) -> Job:
    return Job(s3_server, bucket, tmp_path, trainer_python)


def test_a_good_job_passes_and_its_rows_lie_in_the_bucket(job: Job) -> None:
    code, report, _ = job.preflight()
    assert (code, report.outcome) == (0, Outcome.VALIDATED)
    assert report.dataset is not None
    assert (report.dataset.rows, report.dataset.accepted_rows, report.dataset.rejected_rows) == (200, 180, 20)
    assert report.dataset.rejected_rows_by_code == {"BAD_JSON": 20}
    assert (report.job_uid, report.config_sha256) == ("uid-1", job.config.config_sha256)
    assert {entry.key for entry in job.storage.list(job.config.output_key())} == {
        "owner.json",
        "rejected_rows.jsonl",
        "dataset/summary.json",
        "dataset/train.arrow",
        "dataset/train.jsonl",
        "dataset/validation.arrow",
        "dataset/validation.jsonl",
    }


def test_ten_thousand_rows_are_checked_in_little_memory(job: Job) -> None:
    job.put("rows.jsonl", "\n".join(rows(10_000)))
    job.python = sys.executable
    code, report, peak_kib = job.preflight()
    assert code == 0
    assert report.dataset is not None
    assert report.dataset.rows == 10_000
    assert 32 * 1024 < peak_kib < 256 * 1024


def test_wrong_keys_end_in_77(job: Job) -> None:
    code, report, _ = job.preflight(AWS_SECRET_ACCESS_KEY="wr0ng")
    assert (code, report.reason, report.outcome) == (77, "StorageDenied", Outcome.FAILED)
    assert "secret key does not match" in report.message
    assert "wr0ng" not in report.message


def test_a_missing_bucket_ends_in_77(job: Job) -> None:
    job.make_config(output={"uri": "s3://no-such-bucket/out"})
    code, report, _ = job.preflight()
    assert (code, report.reason) == (77, "StorageDenied")
    assert "no-such-bucket" in report.message


def test_a_dead_endpoint_ends_in_69(job: Job) -> None:
    job.make_config(storage={"endpoint": "http://127.0.0.1:9"})
    code, report, _ = job.preflight()
    assert (code, report.reason) == (69, "StorageUnavailable")
    assert "http://127.0.0.1:9" in report.message


def test_a_missing_model_ends_in_66(job: Job) -> None:
    job.make_config(model={"uri": f"s3://{job.bucket}/no-model"})
    code, report, _ = job.preflight()
    assert (code, report.reason) == (66, "ModelUnavailable")
    assert "no object under this prefix" in report.message


def test_a_job_above_its_memory_budget_ends_in_71_with_the_number_and_what_would_fit(job: Job, tmp_path: Path) -> None:
    for path in make_tiny_model(tmp_path / "tiny").iterdir():
        job.put(f"tiny/{path.name}", path.read_bytes())
    wide = {"perDeviceTrainBatchSize": 512, "maxLength": 1024}
    tuning = {"method": "LoRA", "vramBudget": "1500Mi"}
    job.make_config(model={"uri": f"s3://{job.bucket}/tiny"}, hyperparameters=wide, tuning=tuning)
    code, report, _ = job.preflight()
    assert (code, report.reason, report.outcome) == (71, "WontFit", Outcome.FAILED)
    assert re.match(r"LoRA is estimated at \d+\.\d GiB of GPU memory, above tuning.vramBudget 1\.5 GiB", report.message)
    assert "Set perDeviceTrainBatchSize 1 and gradientAccumulationSteps 512 (" in report.message
    assert listing(job) == []


def test_a_model_of_a_hub_that_is_not_shown_ends_in_66_and_its_rows_in_65(job: Job) -> None:
    job.python = sys.executable  # the library of the hub reads its settings when it is imported
    with Hub(job.directory / "hub").serving() as hub:
        job.make_config(hub={"endpoint": hub.endpoint}, model={"uri": "hf://acme/none"})
        code, report, _ = job.preflight(NO_PROXY="127.0.0.1")
        assert (code, report.reason) == (66, "ModelUnavailable")
        assert "correct spec.model.uri or spec.hub.endpoint, or put a token into a Secret" in report.message
        job.make_config(hub={"endpoint": hub.endpoint}, dataset={"train": {"uri": "hf://datasets/acme/none"}})
        code, report, _ = job.preflight(NO_PROXY="127.0.0.1")
        assert (code, report.reason) == (65, "DatasetUnusable")
        assert "correct spec.dataset.train.uri or spec.hub.endpoint, or put a token into a Secret" in report.message
    assert listing(job) == []


def test_a_file_of_garbage_ends_in_65_with_counts_and_first_lines(job: Job) -> None:
    job.put("rows.jsonl", random.Random(2).randbytes(4096))
    code, report, _ = job.preflight()
    assert (code, report.reason) == (65, "DatasetUnusable")
    assert "rows can be used (" in report.message
    assert re.search(r"First: lines? 1\b", report.message)
    (rejected,) = job.storage.list(job.config.output_key())
    assert rejected.key == f"refused/{job.config.uid}/rejected_rows.jsonl"


def test_a_prefix_of_another_job_ends_in_73_and_nothing_is_touched(job: Job) -> None:
    assert job.preflight()[0] == 0
    before = {entry.key: job.storage.sha256(f"{job.config.output_key()}/{entry.key}") for entry in listing(job)}
    job.make_config(name="other", uid="uid-2")
    code, report, _ = job.preflight()
    assert (code, report.reason) == (73, "OutputConflict")
    assert "team/job" in report.message
    assert {entry.key: job.storage.sha256(f"{job.config.output_key()}/{entry.key}") for entry in listing(job)} == before


def listing(job: Job) -> list[Any]:
    return job.storage.list(job.config.output_key())


def test_a_published_result_is_adopted_by_the_job_created_again(job: Job, tmp_path: Path) -> None:
    assert job.preflight()[0] == 0
    result = tmp_path / "result"
    (result / "adapter").mkdir(parents=True)
    (result / "adapter" / "adapter_model.safetensors").write_bytes(os.urandom(20 * 1024 * 1024))
    trained = Report(
        outcome=Outcome.PUBLISHED,
        reason="Published",
        message="trained",
        job_uid="uid-1",
        config_sha256=job.config.config_sha256,
        metrics={"eval_loss": 1.25},
    )
    reporter = Reporter("uid-1", out=io.StringIO())
    published = publish(RunContext(job.config, job.storage, tmp_path, reporter, StopFlag()), result, trained)
    assert find_result_faults(job.config.output_key(), job.storage) == []
    job.make_config(uid="uid-2")
    code, report, _ = job.preflight()
    assert (code, report.outcome, report.job_uid) == (0, Outcome.ADOPTED, "uid-2")
    assert report.artifacts == published.artifacts
    assert report.metrics is not None
    assert report.metrics.eval_loss == 1.25


def test_the_key_of_an_object_forges_no_line_of_the_log_and_controls_no_terminal(job: Job) -> None:
    job.python = sys.executable
    job.put("rows/a.jsonl", "\n".join(rows(50, malformed_every=100)))
    job.put("rows/b\n2026-01-01T00:00:00Z ERROR forged\x1b[2J\x9b\u202e.jsonl.gz", gzip.compress(b"{}" * 99)[:-9])
    job.make_config(dataset={"train": {"uri": f"s3://{job.bucket}/rows/"}, "validationSplitPercent": 15})
    code, report, _ = job.preflight()
    log = (job.directory / "output").read_text()
    assert code == 65
    assert "b\\n2026-01-01T00:00:00Z ERROR forged\\u001b[2J\\u009b\\u202e.jsonl.gz" in log
    assert "ERROR forged\\u001b[2J\\u009b\\u202e.jsonl.gz" in report.message
    assert [line for line in log.splitlines() if line.startswith("2026-01-01")] == []
    assert not {"\x1b", "\x9b", "\u202e"} & set(log + report.message)
