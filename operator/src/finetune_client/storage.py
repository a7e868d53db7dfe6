"""The published files of a job in its storage, read with the viewer's own keys and verified by the job's status."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.endpoints import is_aws_s3, is_endpoint
from finetune_api.handoff import Artifact, Manifest, ManifestFile
from finetune_api.status import Artifacts
from finetune_client.cluster.job import NEWER, Job
from finetune_client.errors import FineTuneError, NotFound, WrongUse, explain_unwritten

INSTALL = "pip install boto3"
NO_ENDPOINT = "the operator's default storage may have an endpoint: add --endpoint URL"
SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
NO_KEYS = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
URL = "https://host, http://host or http://host:port"
PIECE = 1 << 20
VERIFY = "the result was changed or replaced; finetune-trainer verify checks all of its files"


def published(job: Job) -> Artifacts:
    """Return the published files; raise NotFound if there are none."""
    found = job.status.artifacts
    if found is None or not found.uri or not found.report_uri:
        what = "published nothing" if job.has_ended else "has not published its report yet"
        raise FineTuneError(f"{job.name} {what}", job.why)
    return found


def open_storage(job: Job, endpoint: str | None = None, note: Callable[[str], object] = lambda _: None) -> "Storage":
    """Return the published files of a job, at the endpoint that the viewer's keys belong to, or that they name.

    `note` gets a sentence if that is AWS, although the operator may have a default.
    """
    artifacts, where = published(job), require_endpoint(job, endpoint)
    if not where:
        note(f"note: {NO_ENDPOINT}")
    return Storage(artifacts, where, in_path=job.field("storage.forcePathStyle") is not False)


def require_endpoint(job: Job, asked: str | None) -> str:
    """Return the endpoint that may get requests signed with the viewer's keys; empty is AWS.

    It is the option, else the endpoint of the viewer's environment or profile. The author of the job names another one
    only if it is AWS too.
    """
    if asked:
        if not is_endpoint(asked):
            raise WrongUse(f"endpoint {asked} is not a URL", f"write {URL}")
        return asked
    own, named = _own_endpoint(), named_by(job)
    if not is_aws_s3(own):
        return own
    if named and not is_aws_s3(named):
        raise WrongUse(
            f"spec.storage.endpoint of the job is {named}, but this environment uses {own} (see AWS_ENDPOINT_URL)",
            f"to send requests there, signed with your AWS key if you have one, add --endpoint {named}",
        )
    return named


def named_by(job: Job) -> str:
    """Return the endpoint that the job's author has chosen, or nothing."""
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
        import boto3  # noqa: PLC0415 - only for what reads from storage
    except ImportError:
        raise FineTuneError("boto3, which reads from storage, is not installed here", INSTALL) from None
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
        """Return a file of the manifest; raise FineTuneError if its digest differs."""
        entry = next((one for one in self._manifest.files if one.path == name), None)
        if entry is None:
            raise FineTuneError(f"the manifest of this result names no {name}", self._contents())
        return self._verified(name, entry.sha256)

    def names(self, under: str = "") -> list[str]:
        """Return the names of the published files, or of those in one folder."""
        return [one.path for one in self._entries(under)]

    def download(self, folder: Path, under: str = "") -> list[Path]:
        """Write the published files, or those of one folder, below a folder; return their paths.

        A file gets its name once its digest is verified.
        """
        return [self._save(entry, folder) for entry in self._entries(under)]

    def _entries(self, under: str) -> list[ManifestFile]:
        files, prefix = self._manifest.files, under.strip("/")
        found = [one for one in files if not prefix or f"{one.path}/".startswith(f"{prefix}/")]
        if not found:
            raise NotFound(f"this result has no {under}", self._contents())
        return found

    def _contents(self) -> str:
        return f"it has {', '.join(one.path for one in self._manifest.files)}"

    def _save(self, entry: ManifestFile, folder: Path) -> Path:
        target = folder / entry.path
        if not target.resolve().is_relative_to(folder.resolve()):
            raise FineTuneError(f"the manifest names {entry.path}, which is outside {folder}", VERIFY)
        part = target.with_name(f"{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._write(part, entry)
            part.replace(target)
        except OSError as error:
            raise explain_unwritten(target, error) from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink()  # of a download that has failed, or was interrupted
        return target

    def _write(self, part: Path, entry: ManifestFile) -> None:
        found = hashlib.sha256()
        with part.open("wb") as file:
            for piece in self._pieces(entry.path):
                found.update(piece)
                file.write(piece)
        if found.hexdigest() != entry.sha256:
            raise _changed(entry.path)

    def _load_manifest(self, digest: str) -> Manifest:
        try:
            return Manifest.model_validate_json(self._verified(Artifact.MANIFEST, digest))
        except ValidationError:
            raise FineTuneError("the manifest in storage has a version that this client cannot read", NEWER) from None

    def _verified(self, name: str, digest: str) -> bytes:
        data = b"".join(self._pieces(name))
        if hashlib.sha256(data).hexdigest() != digest:
            raise _changed(name)
        return data

    def _pieces(self, name: str) -> Iterator[bytes]:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as boto3

        key = f"{self._prefix.rstrip('/')}/{name}"
        try:
            body = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"]
            while piece := body.read(PIECE):
                yield bytes(piece)
        except (BotoCoreError, ClientError) as error:
            hint = "" if self._endpoint else f"{NO_ENDPOINT}; "
            raise FineTuneError(
                f"s3://{self._bucket}/{key} cannot be read at {self._endpoint or 'AWS'}: {error}",
                f"{hint}the credentials are those of your environment (AWS_PROFILE or AWS_ACCESS_KEY_ID); an endpoint "
                "inside the cluster needs kubectl port-forward and --endpoint",
            ) from None


def _changed(name: str) -> FineTuneError:
    return FineTuneError(
        f"{name} in storage is not the file that this job published: its SHA-256 differs",
        VERIFY,
    )
