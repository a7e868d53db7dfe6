"""A real S3 server that goes away, answers late, breaks connections and throws errors, while a trainer works."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gateway import Answer, Fault, Gateway, Tear
from published_result import find_result_faults
from tiny_model import make_tiny_model
from trainer_pod import ROWS, Pod, checked, make_config
from waiting import wait_until

from finetune_api.handoff import Artifact, ExitCode, Outcome, Report
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.errors import StorageUnavailable
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.publishing.publish import publish
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import connect_s3

MIB = 1024 * 1024
DENIED = Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
FULL = Answer(507, b"<Error><Code>InsufficientStorage</Code></Error>")
UNAVAILABLE = Answer(503, b"<Error><Code>ServiceUnavailable</Code></Error>")


@pytest.fixture
def gateway(s3_server: Any, aws_environment: None) -> Iterator[Gateway]:
    """The trainer's way to the S3 server."""
    address = urlsplit(s3_server.endpoint)
    with Gateway(address.hostname or "", address.port or 80).serving() as one:
        yield one


@pytest.fixture
def storage(s3_server: Any, gateway: Gateway) -> S3Store:
    """As in a training pod, which is patient."""
    return S3Store(connect_s3(s3_server.spec().model_copy(update={"endpoint": gateway.url})), retry_seconds=60)


@pytest.fixture
def direct(s3_server: Any, aws_environment: None) -> S3Store:
    return S3Store(connect_s3(s3_server.spec()))


@pytest.fixture
def pod(s3_server: Any, gateway: Gateway, direct: S3Store, bucket: str, tmp_path: Path, *, trainer_python: str) -> Pod:
    """A job after its preflight, which reaches the storage through the gateway and saves twice before its end."""
    for path in make_tiny_model(tmp_path / "model").iterdir():
        direct.upload(path, f"s3://{bucket}/model/{path.name}")
    direct.put(f"s3://{bucket}/rows.jsonl", ROWS.encode())
    config = make_config(s3_server, bucket, checkpoint={"steps": 20}, storage={"endpoint": gateway.url})
    return checked(config, tmp_path, trainer_python)


def require_published(pod: Pod, direct: S3Store) -> None:
    """One run from the first step to the last, and a result that is whole."""
    report = pod.report()
    assert (report.outcome, report.last_step, report.resumed_from_step) == (Outcome.PUBLISHED, 60, None)
    prefix = pod.config.output_key()
    assert find_result_faults(prefix, direct) == []
    assert direct.list(f"{prefix}/{Artifact.CHECKPOINTS}") == []


def wait_for_a_retry(pod: Pod, process: "subprocess.Popen[bytes]") -> None:
    """Until the trainer says that it has asked the store in vain, and will again."""
    log = pod.directory / "stderr"
    wait_until(lambda: "retry in" in log.read_text() or process.poll() is not None, log.read_text)
    assert process.poll() is None, log.read_text()


def sometimes(share: float, *faults: Fault) -> Any:
    chance = random.Random(1)
    return lambda _method, _path: chance.choice(faults) if chance.random() < share else None


@pytest.mark.nightly
def test_a_training_outlasts_a_store_that_is_stopped_while_a_checkpoint_is_due(
    pod: Pod, gateway: Gateway, direct: S3Store
) -> None:
    process = pod.start("train")
    pod.wait_for_step(process, 12)
    gateway.leave()
    wait_for_a_retry(pod, process)
    gateway.come_back()
    assert process.wait(600) == 0, (pod.directory / "stderr").read_text()
    require_published(pod, direct)


def test_a_job_succeeds_though_a_fifth_of_all_requests_fail(pod: Pod, gateway: Gateway, direct: S3Store) -> None:
    """503 answers, connections that are reset, uploads that are torn, and all of it slowly."""
    gateway.delay = 0.02
    gateway.rule = sometimes(0.2, UNAVAILABLE, Tear(), Tear(after=1000))
    process = pod.start("train")
    assert process.wait(600) == 0, (pod.directory / "stderr").read_text()
    assert gateway.faults > 10
    require_published(pod, direct)


def test_a_large_file_arrives_whole_through_errors_and_resets(
    storage: S3Store, gateway: Gateway, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(bytes(range(256)) * 4096 * 40)
    gateway.rule = sometimes(0.2, UNAVAILABLE, Tear(), Tear(after=MIB))
    storage.upload(tmp_path / "big", f"s3://{bucket}/big")
    storage.download(f"s3://{bucket}/big", tmp_path / "copy")
    assert gateway.faults
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "big").read_bytes()


def test_an_upload_that_is_torn_again_and_again_leaves_no_object(
    s3_server: Any, gateway: Gateway, direct: S3Store, bucket: str, tmp_path: Path
) -> None:
    """Neither a small one, nor one of many parts of which one never arrives."""
    impatient = S3Store(connect_s3(s3_server.spec().model_copy(update={"endpoint": gateway.url})))
    for size in (4 * MIB, 40 * MIB):
        (tmp_path / "file").write_bytes(b"x" * size)
        gateway.rule = lambda method, path: Tear(MIB) if method == "PUT" and "partNumber=1&" not in path else None
        with pytest.raises(StorageUnavailable):
            impatient.upload(tmp_path / "file", f"s3://{bucket}/torn/file")
        gateway.rule = lambda _method, _path: None
        assert direct.list(f"s3://{bucket}/torn") == []


@pytest.mark.nightly
def test_a_trainer_that_starts_while_the_store_is_away_waits_for_it(
    pod: Pod, gateway: Gateway, direct: S3Store
) -> None:
    gateway.leave()
    process = pod.start("train")
    wait_for_a_retry(pod, process)
    gateway.come_back()
    assert process.wait(600) == 0, (pod.directory / "stderr").read_text()
    require_published(pod, direct)


@pytest.mark.nightly
def test_a_result_that_may_not_be_written_leaves_no_manifest_and_a_later_run_finishes_it(
    pod: Pod, gateway: Gateway, direct: S3Store
) -> None:
    """Checkpoints may; the adapter may not."""
    gateway.rule = lambda method, path: DENIED if method in {"PUT", "POST"} and "/adapter/" in path else None
    process = pod.start("train")
    assert process.wait(600) == ExitCode.STORAGE_DENIED, (pod.directory / "stderr").read_text()
    prefix = pod.config.output_key()
    assert direct.read(f"{prefix}/{Artifact.MANIFEST}") is None
    gateway.rule = lambda _method, _path: None
    process = pod.start("train")
    assert process.wait(600) == 0, (pod.directory / "stderr").read_text()
    assert (pod.report().outcome, find_result_faults(prefix, direct)) == (Outcome.PUBLISHED, [])


def test_a_full_store_leaves_no_manifest_and_another_try_finishes_the_result(
    pod: Pod, gateway: Gateway, direct: S3Store, s3_server: Any, tmp_path: Path
) -> None:
    impatient = S3Store(connect_s3(s3_server.spec().model_copy(update={"endpoint": gateway.url})))
    folder = tmp_path / "result"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * MIB)
    config = pod.config
    result = Report(outcome=Outcome.PUBLISHED, reason="Published", message="m", job_uid=config.uid, config_sha256="c")
    run = RunContext(config, impatient, tmp_path, Reporter(config.uid), StopFlag())
    gateway.rule = lambda method, path: FULL if method in {"PUT", "POST"} and "/adapter/" in path else None
    with pytest.raises(StorageUnavailable, match="the storage is full: delete objects there"):
        publish(run, folder, result)
    assert direct.read(f"{config.output_key()}/{Artifact.MANIFEST}") is None
    gateway.rule = lambda _method, _path: None
    published = publish(run, folder, result)
    assert published.artifacts
    assert published.artifacts.manifest_sha256
    assert find_result_faults(config.output_key(), direct) == []
