"""`report`: the result of a job, the location of its report and, on request, the report itself from storage."""

import hashlib
import os
import shlex
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Group
from rich.text import Text

from finetune_api.endpoints import is_aws_s3, is_endpoint
from finetune_api.handoff import Artifact, Manifest
from finetune_api.status import Artifacts
from kubectl_finetune.cluster.job import Job
from kubectl_finetune.commands.describe import result_pairs, verdict_pairs, why
from kubectl_finetune.commands.progress import loss_pairs
from kubectl_finetune.display.table import fields, heading
from kubectl_finetune.errors import PluginError, WrongUse

INSTALL = "pip install boto3"
NO_ENDPOINT = "the operator's default storage may have an endpoint: add --endpoint URL"
OF_THE_JOB = "the job names this endpoint: the commands send it requests that are signed with your keys"
SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
NO_KEYS = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
URL = "https://host, http://host or http://host:port"


def result_page(job: Job, asked: str | None) -> Group:
    """Return the summary in the status, and the commands that fetch the report."""
    artifacts = published(job)
    own = asked or next(filter(None, map(os.environ.get, SETTINGS)), "")
    endpoint = own or _named_by(job)
    remark = NO_ENDPOINT if not endpoint else OF_THE_JOB if not own and not is_aws_s3(endpoint) else ""
    parts = [
        fields([("Job", f"{job.namespace}/{job.name}"), *verdict_pairs(job), ("Phase", job.phase), ("Why", why(job))]),
        Text(""),
        heading("In training"),
        fields(loss_pairs(job), 2),
        Text(""),
        heading("Result"),
        fields(result_pairs(job), 2),
        Text(""),
        heading("Fetch"),
        *(Text("  " + line) for line in commands(job, artifacts, endpoint)),
        *([Text(f"  # {remark}")] if remark else []),
    ]
    return Group(*parts)


def result_record(job: Job) -> dict[str, Any]:
    """Return the summary for programs, under the names of the status."""
    status = job.status.to_wire()
    blocks = ("phase", "reason", "message", "metrics", "evaluation", "dataset", "artifacts")
    return {"name": job.name, "namespace": job.namespace} | {key: status[key] for key in blocks if key in status}


def commands(job: Job, artifacts: Artifacts, endpoint: str) -> list[str]:
    """Return the commands that fetch the result with storage credentials, with or without this plugin."""
    where, aws = (f" {name} {shlex.quote(endpoint)}" if endpoint else "" for name in ("--endpoint", "--endpoint-url"))
    prefix = (artifacts.uri or "").rstrip("/")
    return [
        f"kubectl finetune report {job.name} -n {job.namespace} --save .{where}",
        f"aws s3 cp{aws} {shlex.quote(f'{prefix}/{Artifact.REPORT_PAGE}')} .",
        f"finetune-trainer verify{where} {shlex.quote(prefix)}",
    ]


def published(job: Job) -> Artifacts:
    """Return the published files; raise PluginError if there are none."""
    found = job.status.artifacts
    if found is None or not found.uri or not found.report_uri:
        what = "published nothing" if job.has_ended else "has not published its report yet"
        raise PluginError(f"{job.name} {what}", why(job))
    return found


def require_endpoint(job: Job, asked: str | None) -> str:
    """Return the endpoint that may get requests signed with the viewer's keys; empty is AWS.

    It is the option, else the endpoint of the viewer's environment or profile. The author of the job names another one
    only if it is AWS too.
    """
    if asked:
        if not is_endpoint(asked):
            raise WrongUse(f"--endpoint {asked} is not a URL", f"write {URL}")
        return asked
    own, named = _own_endpoint(), _named_by(job)
    if not is_aws_s3(own):
        return own
    if named and not is_aws_s3(named):
        raise WrongUse(
            f"spec.storage.endpoint of the job is {named}, but your AWS key belongs to {own} (see AWS_ENDPOINT_URL)",
            f"to send requests there that are signed with it, add --endpoint {named}",
        )
    return named


def _named_by(job: Job) -> str:
    return str(job.field("storage.endpoint") or "")


def _own_endpoint() -> str:
    """Return the endpoint of the environment or of the AWS profile, else that of AWS, as boto3 finds it."""
    boto3 = _boto3()
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - as boto3

    try:
        # No request is sent; the keys only keep boto3 from looking for the real ones.
        return str(boto3.Session().client("s3", "us-east-1", **NO_KEYS).meta.endpoint_url)
    except (ValueError, BotoCoreError) as error:
        fix = f"an endpoint is {URL}, and a profile one of your AWS configuration"
        raise WrongUse(f"{', '.join(SETTINGS)} or AWS_PROFILE: {error}", fix) from None


def _boto3() -> Any:
    try:
        import boto3  # noqa: PLC0415 - needed only for --show and --save
    except ImportError:
        raise PluginError("boto3, which reads from storage, is not installed here", INSTALL) from None
    return boto3


class Storage:
    """The published files of one job, each verified by its manifest, and that by the job's status."""

    def __init__(self, artifacts: Artifacts, endpoint: str, *, in_path: bool = True) -> None:
        boto3 = _boto3()
        from botocore.config import Config  # noqa: PLC0415 - as boto3

        style = {"addressing_style": "auto" if not endpoint else "path" if in_path else "virtual"}
        options = Config(s3=style, connect_timeout=5, read_timeout=60)
        self._s3: Any = boto3.Session().client("s3", endpoint_url=endpoint or None, config=options)
        self._bucket, _, self._prefix = (artifacts.uri or "").removeprefix("s3://").partition("/")
        self._endpoint = endpoint
        self._manifest = self._load_manifest(artifacts.manifest_sha256 or "")

    def read(self, name: str) -> bytes:
        """Return a file of the manifest; raise PluginError if its digest differs."""
        entry = next((one for one in self._manifest.files if one.path == name), None)
        if entry is None:
            raise PluginError(f"the manifest of this result names no {name}")
        return self._verified(name, entry.sha256)

    def _load_manifest(self, digest: str) -> Manifest:
        try:
            return Manifest.model_validate_json(self._verified(Artifact.MANIFEST, digest))
        except ValidationError:
            raise PluginError("the manifest in storage has a version that this plugin cannot read") from None

    def _verified(self, name: str, digest: str) -> bytes:
        data = self._get(name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise PluginError(
                f"{name} in storage is not the file that this job published: its SHA-256 differs",
                "the result was changed or replaced; finetune-trainer verify checks all of its files",
            )
        return data

    def _get(self, name: str) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as boto3

        key = f"{self._prefix.rstrip('/')}/{name}"
        try:
            return bytes(self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read())
        except (BotoCoreError, ClientError) as error:
            hint = "" if self._endpoint else f"{NO_ENDPOINT}; "
            raise PluginError(
                f"s3://{self._bucket}/{key} cannot be read at {self._endpoint or 'AWS'}: {error}",
                f"{hint}the credentials are those of your environment (AWS_PROFILE or AWS_ACCESS_KEY_ID); an endpoint "
                "inside the cluster needs kubectl port-forward and --endpoint",
            ) from None


def text(storage: Storage) -> bytes:
    """Return the report as Markdown."""
    return storage.read(Artifact.REPORT)


def save(storage: Storage, folder: Path) -> list[Path]:
    """Write both forms of the report to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in (Artifact.REPORT, Artifact.REPORT_PAGE):
        path = folder / Path(name).name
        path.write_bytes(storage.read(name))
        paths.append(path)
    return paths
