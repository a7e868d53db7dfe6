"""The verified result that a release is about, and the report of how the release ended."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import ValidationError

from finetune_api.evaluation import EvaluationStatus, Verdict
from finetune_api.handoff import Artifact, Manifest, ManifestFile, Outcome
from finetune_api.objectives import Objective
from finetune_api.release import ReleaseConfig, ReleaseOutcome, ReleaseReport
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.config.manifest import read_manifest
from finetune_trainer.models.files.base_model import is_text_file
from finetune_trainer.publishing.publish import find_file_faults
from finetune_trainer.storage.protocol import Store, join_uri

ADAPTER_CONFIG = "adapter/adapter_config.json"


class Refused(Exception):  # noqa: N818 - named after the event
    """The result is not released, and a retry would find the same."""

    def __init__(self, message: str, outcome: ReleaseOutcome = ReleaseOutcome.REFUSED) -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Candidate:
    """A verified result."""

    manifest: Manifest
    spec: FineTuneJobSpec
    folder: str
    """`adapter`, or `merged` of a result without an adapter."""
    files: list[ManifestFile]
    """The files of this folder."""
    adapter: dict[str, object]
    """The content of `adapter_config.json`."""
    rows: Path | None
    """A copy of the held-out rows."""
    tokenizer: Path
    """A folder with copies of the tokenizer's files."""
    choices: int = 1
    """The number of evaluations on these rows from which the weights were chosen."""


def report(config: ReleaseConfig, outcome: ReleaseOutcome, message: str, **more: object) -> ReleaseReport:
    """Return the report of this release."""
    content = {"outcome": outcome, "message": message[:1024], "release_uid": config.uid}
    return ReleaseReport.model_validate(content | {"generation": config.generation} | more)


def verify(config: ReleaseConfig, storage: Store, workspace: Path) -> Candidate:
    """Return the result, with every file that is released or asked verified by its digest; raise Refused."""
    uri, wanted = config.candidate.uri.rstrip("/"), config.candidate.manifest_sha256
    data = storage.read(join_uri(uri, Artifact.MANIFEST))
    if data is None:
        raise Refused(f"{uri} has no {Artifact.MANIFEST}: it is not a published result")
    digest = hashlib.sha256(data).hexdigest()
    if digest != wanted:
        raise Refused(f"{uri}: the manifest has SHA-256 {digest} instead of {wanted}: name the result that you mean")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError:
        raise Refused(f"{uri}: {Artifact.MANIFEST} cannot be read") from None
    paths = {file.path for file in manifest.files}
    folder = Artifact.ADAPTER if ADAPTER_CONFIG in paths else Artifact.MERGED
    files = [file for file in manifest.files if file.path.startswith(f"{folder}/")]
    asked = {Artifact.CONFIG, Artifact.VALIDATION_ROWS, Artifact.METRICS}
    read = [*files, *(file for file in manifest.files if file.path in asked)]
    if not files or Artifact.CONFIG not in paths:
        raise Refused(f"{uri} publishes no model: name the result of a job that trained one")
    if faults := find_file_faults(uri, read, storage):
        raise Refused(f"{uri} is damaged: {'; '.join(faults[:3])}")
    workspace.mkdir(parents=True, exist_ok=True)
    for name in asked & paths:
        storage.download(join_uri(uri, name), workspace / Path(name).name)
    tokenizer = workspace / "tokenizer"
    for path in [file.path.removeprefix(f"{folder}/") for file in files]:
        if is_text_file(path):
            storage.download(join_uri(uri, f"{folder}/{path}"), tokenizer / path)
    spec = read_manifest(workspace / Artifact.CONFIG, manifest.uid).spec
    _require(config, manifest, spec)
    adapter = json.loads(storage.read(join_uri(uri, ADAPTER_CONFIG)) or b"{}")
    rows = workspace / Path(Artifact.VALIDATION_ROWS).name
    return Candidate(
        manifest,
        spec,
        folder,
        files,
        adapter,
        rows if Artifact.VALIDATION_ROWS in paths else None,
        tokenizer,
        _count_evaluations(workspace / Artifact.METRICS) if Artifact.METRICS in paths else 1,
    )


def _count_evaluations(metrics: Path) -> int:
    """Return the number of evaluations of the training; that of the untrained model is none."""
    with metrics.open("rb") as lines:
        return sum(b'"kind": "eval"' in line and orjson.loads(line)["step"] > 0 for line in lines)


def _require(config: ReleaseConfig, manifest: Manifest, spec: FineTuneJobSpec) -> None:
    """Raise Refused if the result does not meet the conditions of the release by its own report."""
    found, required = manifest.result.evaluation or EvaluationStatus(), config.require
    if spec.objective is Objective.REWARD_MODEL:
        raise Refused("a reward model generates no text, so no server answers with it")
    if manifest.result.outcome is Outcome.GATE_NOT_MET or found.gate == "NotMet":
        raise Refused(f"its gate is not met: {found.gate_message or manifest.result.message}")
    if found.verdict == Verdict.WORSE:
        raise Refused(f"its own verdict is Worse: {found.verdict_message}")
    if required and required.gate and found.gate != required.gate:
        raise Refused(f"require.gate is Passed, but the job has no evaluation.gate (it is {found.gate}): set one")
    if required and required.verdict and found.verdict != required.verdict:
        raise Refused(f"require.verdict is Better, and the job's is {found.verdict}: {found.verdict_message}")
