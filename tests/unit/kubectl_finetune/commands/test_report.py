import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trackers import refusing_server

from finetune_api.handoff import Artifact
from finetune_api.status import Artifacts
from finetune_client.errors import FineTuneError
from finetune_client.storage import NO_ENDPOINT, Storage
from kubectl_finetune.commands import report

COMPLETE = [
    {
        "type": kind,
        "status": "True",
        "reason": "Succeeded",
        "message": "Published.",
        "lastTransitionTime": "2026-03-01T12:25:00Z",
    }
    for kind in ("Validated", "Complete")
]
ARTIFACTS = {"uri": "s3://b/out", "reportURI": "s3://b/out/finetune_report.md", "manifestSHA256": "ab" * 32}


def test_a_report_without_a_known_endpoint_names_the_operators_default(
    front: Any, finetune: Callable[..., Any], job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    front.answers["one"] = [(200, job(phase="Succeeded", conditions=COMPLETE, artifacts=ARTIFACTS).raw)]
    assert NO_ENDPOINT in finetune("report", "one", "--context", "lab").out
    assert NO_ENDPOINT not in finetune("report", "one", "--context", "lab", "--endpoint", "http://minio:9000").out
    spec = {"storage": {"endpoint": "http://minio:9000"}}
    front.answers["one"] = [(200, job(spec=spec, phase="Succeeded", conditions=COMPLETE, artifacts=ARTIFACTS).raw)]
    assert NO_ENDPOINT not in finetune("report", "one", "--context", "lab").out


@pytest.fixture
def own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of the viewer, which belong to AWS, and a proxy that AWS cannot be reached through."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("AWS_ACCESS_KEY_ID", "AKIDMINE"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_MAX_ATTEMPTS", "1")):
        monkeypatch.setenv(name, value)
    for name, value in (("HTTPS_PROXY", "http://127.0.0.1:9"), ("NO_PROXY", "127.0.0.1"), ("AWS_CONFIG_FILE", "none")):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("own_keys")
def test_no_request_is_signed_for_an_endpoint_that_the_job_alone_names(
    front: Any, finetune: Callable[..., Any], job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing_server(403) as (uri, asked), refusing_server(403) as (own, mine):
        spec = {"storage": {"endpoint": uri}}
        front.answers["one"] = [(200, job(spec=spec, phase="Succeeded", conditions=COMPLETE, artifacts=ARTIFACTS).raw)]
        for option in (["--show"], ["--save", "reports"]):
            done = finetune("report", "one", *option, "--context", "lab")
            error, fix = done.err.splitlines()
            assert (done.code, asked) == (2, [])
            assert f"spec.storage.endpoint of the job is {uri}, but this environment uses https://s3." in error
            assert (
                fix.strip() == f"to send requests there, signed with your AWS key if you have one, add --endpoint {uri}"
            )
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", own)
        assert f"cannot be read at {own}" in finetune("report", "one", "--show", "--context", "lab").err
        assert (asked, len(mine)) == ([], 1)
        assert (
            f"cannot be read at {uri}" in finetune("report", "one", "--show", "--context", "lab", "--endpoint", uri).err
        )
        assert [(one.authorization or "").partition("/")[0] for one in asked] == [
            "AWS4-HMAC-SHA256 Credential=AKIDMINE"
        ]


@pytest.mark.usefixtures("own_keys")
def test_a_wrong_endpoint_or_profile_is_invalid_usage(
    front: Any, finetune: Callable[..., Any], job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    front.answers["one"] = [(200, job(phase="Succeeded", conditions=COMPLETE, artifacts=ARTIFACTS).raw)]
    done = finetune("report", "one", "--show", "--context", "lab", "--endpoint", "minio:9000")
    assert (done.code, "endpoint minio:9000 is not a URL" in done.err) == (2, True)
    for name, value in (("AWS_ENDPOINT_URL", "minio:9000"), ("AWS_PROFILE", "not-there")):
        with monkeypatch.context() as one:
            one.setenv(name, value)
            done = finetune("report", "one", "--show", "--context", "lab")
        assert (done.code, name in done.err, value in done.err) == (2, True, True)


@pytest.mark.usefixtures("own_keys")
def test_fetching_without_a_known_endpoint_uses_aws_and_reports_what_may_be_missing(
    front: Any, finetune: Callable[..., Any], job: Callable[..., Any]
) -> None:
    front.answers["one"] = [(200, job(phase="Succeeded", conditions=COMPLETE, artifacts=ARTIFACTS).raw)]
    done = finetune("report", "one", "--show", "--context", "lab")
    note, error, fix = done.err.splitlines()
    assert (done.code, note) == (1, f"note: {NO_ENDPOINT}")
    assert "cannot be read at AWS" in error
    assert fix.strip().startswith(NO_ENDPOINT)
    known = "http://127.0.0.1:9"
    error, fix = finetune("report", "one", "--show", "--context", "lab", "--endpoint", known).err.splitlines()
    assert f"cannot be read at {known}" in error
    assert fix.strip().startswith("the credentials are those of your environment")


def test_a_report_is_refused_with_the_reason_until_it_is_published(
    front: Any, finetune: Callable[..., Any], job: Callable[..., Any]
) -> None:
    front.answers["one"] = [(200, job(artifacts=artifacts).raw) for artifacts in (None, {}, {"uri": "s3://b/out"})]
    for _ in range(3):
        done = finetune("report", "one", "--context", "lab")
        assert (done.code, "one has not published its report yet" in done.err) == (1, True)
    front.answers["one"] = [(200, job(phase="Failed", conditions=[COMPLETE[1] | {"type": "Failed"}]).raw)]
    assert "one published nothing" in finetune("report", "one", "--context", "lab").err


def test_a_report_page_has_the_commands_that_fetch_it(
    job: Callable[..., Any], printed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    spec = {"storage": {"endpoint": "http://minio:9000"}}
    done = job(spec=spec, phase="Succeeded", conditions=COMPLETE, artifacts=ARTIFACTS | {"uri": "s3://b/my out/"})
    page = printed(report.result_page(done, "http://minio:9000"))
    remark = f"  # {report.OF_THE_JOB}"
    assert printed(report.result_page(done, None)).splitlines() == [*page.splitlines(), remark]
    assert remark not in page
    assert page.partition("Fetch\n")[2].splitlines() == [
        "  kubectl finetune report one -n team-a --save . --endpoint http://minio:9000",
        "  aws s3 cp --endpoint-url http://minio:9000 's3://b/my out/report.html' .",
        "  finetune-trainer verify --endpoint http://minio:9000 's3://b/my out'",
    ]
    assert (
        page.index("In training")
        < page.index("Evaluation loss")
        < page.index("Result")
        < page.index("Everything under")
    )
    assert page.splitlines()[1].split() == ["Verdict:", "NotEvaluated"]


def test_programs_get_the_result_under_the_names_of_the_status(job: Callable[..., Any]) -> None:
    found = report.result_record(job(artifacts=ARTIFACTS))
    assert list(found) == ["name", "namespace", "phase", "reason", "message", "metrics", "dataset", "artifacts"]
    assert (found["name"], found["namespace"], found["artifacts"]) == ("one", "team-a", ARTIFACTS)


RESULT = {"outcome": "Published", "reason": "Succeeded", "message": "", "jobUID": "u", "configSHA256": "ab" * 32}
MANIFEST: dict[str, Any] = {"namespace": "a", "name": "one", "uid": "u", "configSHA256": "ab" * 32, "result": RESULT}


class Bucket:
    """Objects by key, as a client of boto3 returns them."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def client(self, *_: object, **options: Any) -> "Bucket":
        self.options = options
        return self

    @property
    def meta(self) -> "Bucket":
        return self

    @property
    def endpoint_url(self) -> str:
        return os.environ["AWS_ENDPOINT_URL"]

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - names of boto3
        assert Bucket == "b"
        return {"Body": io.BytesIO(self.objects[Key])}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    boto3 = pytest.importorskip("boto3")
    files = {Artifact.REPORT: b"# Report", Artifact.REPORT_PAGE: b"<html>"}
    entries = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    ]
    manifest = json.dumps(MANIFEST | {"files": entries}).encode()
    bucket = Bucket({f"out/{name}": data for name, data in {**files, Artifact.MANIFEST: manifest}.items()})
    monkeypatch.setattr(boto3, "Session", lambda: bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    return bucket


def artifacts_of(bucket: Bucket, **other: str) -> Artifacts:
    digest = hashlib.sha256(bucket.objects[f"out/{Artifact.MANIFEST}"]).hexdigest()
    return Artifacts.model_validate({"uri": "s3://b/out/", "manifestSHA256": digest} | other)


def test_both_forms_of_the_report_are_saved_once_their_digests_match(bucket: Bucket, tmp_path: Path) -> None:
    storage = Storage(artifacts_of(bucket), "http://minio:9000")
    paths = report.save(storage, tmp_path / "new" / "folder")
    assert [path.read_bytes() for path in paths] == [b"# Report", b"<html>"]
    assert storage.read(Artifact.REPORT) == b"# Report"
    assert bucket.options["endpoint_url"] == "http://minio:9000"
    assert bucket.options["config"].s3 == {"addressing_style": "path"}


def test_a_report_is_saved_shown_or_both_by_its_options(
    bucket: Bucket, front: Any, finetune: Callable[..., Any], job: Callable[..., Any], tmp_path: Path
) -> None:
    known = artifacts_of(bucket, reportURI="s3://b/out/finetune_report.md").model_dump(by_alias=True, exclude_none=True)
    spec = {"storage": {"endpoint": "http://minio:9000", "forcePathStyle": False}}
    front.answers["one"] = [(200, job(spec=spec, artifacts=known).raw)]
    done = finetune("report", "one", "--show", "--context", "lab")
    assert (done.code, done.out, done.err) == (0, "# Report", "")
    assert bucket.options["config"].s3 == {"addressing_style": "virtual"}
    done = finetune("report", "one", "--save", str(tmp_path), "--context", "lab")
    saved = [tmp_path / name for name in ("finetune_report.md", "report.html")]
    assert (done.code, done.out, done.err) == (0, "", "".join(f"saved {path}\n" for path in saved))
    assert all(path.exists() for path in saved)
    front.answers["one"] = [(200, job(spec={"storage": {"endpoint": "http://minio:9000"}}, artifacts=known).raw)]
    assert finetune("report", "one", "--save", str(tmp_path), "--show", "--context", "lab").out == "# Report"
    assert bucket.options["config"].s3 == {"addressing_style": "path"}
    for options in ((), ("--save", str(tmp_path))):
        record = finetune("report", "one", "-o", "json", *options, "--context", "lab").out
        assert json.loads(record)["artifacts"]["uri"] == "s3://b/out/"
    done = finetune("report", "one", "-o", "json", "--show", "--context", "lab")
    assert (done.code, done.out) == (2, "")
    assert "--show prints Markdown" in done.err


def test_the_bucket_is_part_of_the_host_on_aws_and_if_the_job_sets_it(bucket: Bucket) -> None:
    for endpoint, in_path, style in (("", True, "auto"), ("http://minio:9000", False, "virtual")):
        Storage(artifacts_of(bucket), endpoint, in_path=in_path)
        assert bucket.options["config"].s3 == {"addressing_style": style}
        assert bucket.options["endpoint_url"] == (endpoint or None)


def test_a_file_or_manifest_that_was_changed_is_refused(bucket: Bucket) -> None:
    storage = Storage(artifacts_of(bucket), "")
    bucket.objects[f"out/{Artifact.REPORT}"] = b"# Better report"
    with pytest.raises(FineTuneError, match="its SHA-256 differs"):
        storage.read(Artifact.REPORT)
    with pytest.raises(FineTuneError, match=r"names no adapter\n  it has finetune_report[.]md, report[.]html"):
        storage.read("adapter")
    with pytest.raises(FineTuneError, match=f"{Artifact.MANIFEST} in storage is not the file"):
        Storage(artifacts_of(bucket, manifestSHA256="00" * 32), "")
    bucket.objects[f"out/{Artifact.MANIFEST}"] = b'{"version": 99}'
    with pytest.raises(FineTuneError, match="a version that this client cannot read"):
        Storage(artifacts_of(bucket), "")
