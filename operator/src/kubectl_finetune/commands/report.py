"""`report`: the result of a job, the location of its report and, on request, the report itself from storage."""

import os
import shlex
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from finetune_api.endpoints import is_aws_s3
from finetune_api.handoff import Artifact
from finetune_api.status import Artifacts
from finetune_client.cluster.job import Job
from finetune_client.errors import explain_unwritten
from finetune_client.storage import NO_ENDPOINT, SETTINGS, Storage, named_by, published
from kubectl_finetune.commands.describe import result_pairs, verdict_pairs
from kubectl_finetune.commands.progress import loss_pairs
from kubectl_finetune.display.table import fields, heading

OF_THE_JOB = "the job names this endpoint: the commands send it requests that are signed with your keys"


def result_page(job: Job, asked: str | None, options: str = "") -> Group:
    """Return the summary in the status, and the commands that fetch the report, those of kubectl with `options`."""
    artifacts = published(job)
    own = asked or next(filter(None, map(os.environ.get, SETTINGS)), "")
    endpoint = own or named_by(job)
    remark = NO_ENDPOINT if not endpoint else OF_THE_JOB if not own and not is_aws_s3(endpoint) else ""
    parts = [
        fields([("Job", f"{job.namespace}/{job.name}"), *verdict_pairs(job), ("Phase", job.phase), ("Why", job.why)]),
        Text(""),
        heading("In training"),
        fields(loss_pairs(job), 2),
        Text(""),
        heading("Result"),
        fields(result_pairs(job), 2),
        Text(""),
        heading("Fetch"),
        *(Text("  " + line) for line in commands(job, artifacts, endpoint, options)),
        *([Text(f"  # {remark}")] if remark else []),
    ]
    return Group(*parts)


def result_record(job: Job) -> dict[str, Any]:
    """Return the summary for programs, under the names of the status."""
    status = job.status.to_wire()
    blocks = ("phase", "reason", "message", "metrics", "evaluation", "dataset", "artifacts")
    return {"name": job.name, "namespace": job.namespace} | {key: status[key] for key in blocks if key in status}


def commands(job: Job, artifacts: Artifacts, endpoint: str, options: str = "") -> list[str]:
    """Return the commands that fetch the result with storage credentials, with or without this plugin."""
    where, aws = (f" {name} {shlex.quote(endpoint)}" if endpoint else "" for name in ("--endpoint", "--endpoint-url"))
    prefix = (artifacts.uri or "").rstrip("/")
    return [
        f"kubectl finetune report {job.name} -n {job.namespace}{options} --save .{where}",
        f"aws s3 cp{aws} {shlex.quote(f'{prefix}/{Artifact.REPORT_PAGE}')} .",
        f"finetune-trainer verify{where} {shlex.quote(prefix)}",
    ]


def save(storage: Storage, folder: Path) -> list[Path]:
    """Write both forms of the report to a folder."""
    paths = []
    for name in (Artifact.REPORT, Artifact.REPORT_PAGE):
        path, content = folder / Path(name).name, storage.read(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise explain_unwritten(path, error) from None
        paths.append(path)
    return paths
