"""A FineTuneJob manifest read without a cluster: the same types, the same rules, errors named by field."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api import names
from finetune_api.handoff import ExitCode, JobConfig, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec_rules import broken_rules
from finetune_api.yaml_document import FileError, YamlError, drop_nulls, join_path, read_documents, read_text
from finetune_trainer.errors import TrainerError

MAX_ERRORS = 10


def read_manifest(path: Path, uid: str) -> JobConfig:
    """Return the one job in a manifest, as a pod would get it; raises InvalidConfig naming each wrong field."""
    jobs = read_manifests(path, lambda: uid)
    if len(jobs) != 1:
        raise _invalid(path, f"contains {len(jobs)} objects, but must contain one {names.KIND}")
    return jobs[0]


def read_manifests(path: Path, make_uid: Callable[[], str]) -> list[JobConfig]:
    """Return every job in a manifest, in their order."""
    jobs = [_job(document, path, make_uid()) for document in _read(path)]
    twice = [name for name, count in Counter(job.name for job in jobs).items() if count > 1]
    if twice:
        raise _invalid(path, f"contains more than one {names.KIND} named {twice[0]}")
    return jobs


def _job(document: dict[str, Any], path: Path, uid: str) -> JobConfig:
    for key, wanted in (("apiVersion", names.API_VERSION), ("kind", names.KIND)):
        if document.get(key) != wanted:
            raise _invalid(path, f"{key} must be {wanted}, not {document.get(key)!r}")
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise _invalid(path, "metadata.name is missing")
    spec = parse_spec(drop_nulls(document.get("spec")), path)
    return JobConfig(
        namespace=str(metadata.get("namespace") or "default"),
        name=metadata["name"],
        uid=uid,
        config_sha256=config_sha256(spec),
        spec=spec,
        simulated_gpus=True,  # a local run uses what the machine has
        is_local=True,
    )


def parse_spec(content: object, path: Path) -> FineTuneJobSpec:
    """Return the spec, validated like in the API server."""
    try:
        spec = FineTuneJobSpec.model_validate(content)
    except ValidationError as error:
        raise _invalid(path, "; ".join(field_errors(error, "spec"))) from None
    broken = broken_rules(spec)
    if broken:
        raise _invalid(path, "; ".join(broken[:MAX_ERRORS]))
    return spec


def field_errors(error: ValidationError, root: str) -> list[str]:
    """One line per wrong field, with its path; the value is left out where it could be long."""
    lines = []
    for one in error.errors(include_url=False)[:MAX_ERRORS]:
        what = "unknown field" if one["type"] == "extra_forbidden" else one["msg"].removeprefix("Value error, ")
        lines.append(f"{join_path((root, *one['loc']))}: {what}")
    return lines


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        documents = read_documents(read_text(path))
    except FileError as error:
        raise TrainerError(ExitCode.INVALID_CONFIG, str(error)) from None
    except YamlError as error:
        raise _invalid(path, f"is not YAML: {error}") from None
    for document in documents:
        for field in document.duplicates:
            raise _invalid(path, f"line {document.line(field)}: {join_path(field)} is given twice")
    found = [document.value for document in documents if isinstance(document.value, dict)]
    if not found:
        raise _invalid(path, f"contains no {names.KIND}")
    return found


def _invalid(path: Path, why: str) -> TrainerError:
    return TrainerError(ExitCode.INVALID_CONFIG, f"{path}: {why}")
