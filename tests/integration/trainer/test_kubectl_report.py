"""`kubectl finetune report` and `diff --rows` on a real S3 server: what is fetched is proven."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.comparing.measured import MeasuredRows
from finetune_api.evaluation import EvaluationMetric
from finetune_api.handoff import Artifact, Manifest, Outcome, Report
from finetune_api.status import Artifacts
from finetune_client.cluster.job import Job
from finetune_client.errors import FineTuneError
from finetune_client.storage import Storage
from kubectl_finetune.commands import report
from kubectl_finetune.commands.compare import read_measured
from kubectl_finetune.commands.diff_rows import compare_rows

FILES = {Artifact.REPORT.value: b"# Report of one\n", Artifact.REPORT_PAGE.value: b"<h1>Report of one</h1>"}


@pytest.fixture
def published(s3_server: Any, bucket: str, aws_environment: None) -> Artifacts:
    """A result as the trainer leaves it, as far as its report goes."""
    return publish(s3_server.client(), bucket, "one", FILES)


def publish(s3: Any, bucket: str, job: str, content: dict[str, bytes]) -> Artifacts:
    """Write files and their manifest below the job's name."""
    files = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()
    ]
    result = Report(outcome=Outcome.PUBLISHED, reason="Published", message="", job_uid="u", config_sha256="c" * 64)
    manifest = Manifest.model_validate(
        {"namespace": "team", "name": "one", "uid": "u", "configSHA256": "c" * 64, "files": files, "result": result}
    )
    data = manifest.model_dump_json(by_alias=True, exclude_none=True).encode()
    for name, body in {**content, Artifact.MANIFEST.value: data}.items():
        s3.put_object(Bucket=bucket, Key=f"jobs/{job}/{name}", Body=body)
    uri = f"s3://{bucket}/jobs/{job}"
    return Artifacts(uri=uri, report_uri=f"{uri}/{Artifact.REPORT}", manifest_sha256=hashlib.sha256(data).hexdigest())


def test_both_forms_of_the_report_are_saved(s3_server: Any, published: Artifacts, tmp_path: Path) -> None:
    storage = Storage(published, s3_server.endpoint)
    assert storage.read(Artifact.REPORT) == FILES[Artifact.REPORT]
    paths = report.save(storage, tmp_path / "reports")
    assert {path.name: path.read_bytes() for path in paths} == FILES


def test_a_replaced_report_is_refused(s3_server: Any, bucket: str, published: Artifacts) -> None:
    s3_server.client().put_object(Bucket=bucket, Key=f"jobs/one/{Artifact.REPORT}", Body=b"# All is well\n")
    with pytest.raises(FineTuneError, match="is not the file that this job published"):
        Storage(published, s3_server.endpoint).read(Artifact.REPORT)


def test_a_replaced_manifest_is_refused(s3_server: Any, bucket: str, published: Artifacts) -> None:
    body = json.dumps({"files": []}).encode()
    s3_server.client().put_object(Bucket=bucket, Key=f"jobs/one/{Artifact.MANIFEST}", Body=body)
    with pytest.raises(FineTuneError, match="its SHA-256 differs"):
        Storage(published, s3_server.endpoint)


def test_errors_for_wrong_keys_and_an_unreachable_endpoint_name_whose_keys_are_used(
    s3_server: Any, published: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(FineTuneError) as away:
        Storage(published, "http://127.0.0.1:9")
    assert "kubectl port-forward and --endpoint" in away.value.fix
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(FineTuneError) as refused:
        Storage(published, s3_server.endpoint)
    assert "those of your environment" in refused.value.fix


def test_rows_of_two_results_are_compared_and_a_replaced_file_is_refused(
    s3_server: Any, bucket: str, aws_environment: None
) -> None:
    row = '{{"text":"{}","_source":{{"file":"notes.txt","line":{}}}}}\n'
    s3, path = s3_server.client(), Artifact.TRAIN_ROWS.value
    texts = {"one": ["a", "b"], "two": ["b", "c"]}
    results = {
        name: publish(s3, bucket, name, {path: "".join(map(row.format, known, (1, 2))).encode()})
        for name, known in texts.items()
    }
    jobs = [Job.from_object({"metadata": {"name": name, "namespace": "team"}}) for name in texts]

    def compare() -> dict[str, Any]:
        found, _ = compare_rows(*jobs, lambda job: Storage(results[job.name], s3_server.endpoint))
        return found

    assert compare()["trained"]["files"] == [{"file": "notes.txt", "both": 1, "onlyFirst": 1, "onlySecond": 1}]
    s3.put_object(Bucket=bucket, Key=f"jobs/two/{path}", Body=b"{}")
    with pytest.raises(FineTuneError, match="is not the file that this job published"):
        compare()


def test_figures_of_rows_are_read_for_a_comparison_and_older_results_have_none(
    s3_server: Any, bucket: str, aws_environment: None
) -> None:
    rows = MeasuredRows(metric=EvaluationMetric.LOSS, rows_sha256="r" * 64, evaluations=3, parts=[(2.5, 10)] * 6)
    content = {Artifact.HELD_OUT.value: rows.model_dump_json(by_alias=True).encode()}
    results = {
        name: publish(s3_server.client(), bucket, name, files)
        for name, files in {"one": content, "two": FILES, "three": {Artifact.HELD_OUT.value: b"{}"}}.items()
    }

    def job(name: str) -> Job:
        status = {"evaluation": {"after": 2.5}, "artifacts": results[name].model_dump(by_alias=True, mode="json")}
        return Job.from_object({"metadata": {"name": name, "namespace": "team"}, "status": status})

    def open_storage(one: Job) -> Storage:
        return Storage(results[one.name], s3_server.endpoint)

    assert read_measured([job("one"), job("two")], open_storage) == {"one": rows}
    with pytest.raises(FineTuneError, match=r"held_out.json of three has a form that this version cannot read"):
        read_measured([job("three")], open_storage)
