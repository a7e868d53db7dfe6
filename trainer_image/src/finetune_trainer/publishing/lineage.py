"""The lineage of a result: `lineage.json` and its short form in the status."""

import hashlib
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.handoff import ENV_IMAGE, Artifact, JobConfig, Outcome, Report
from finetune_api.spec import Method
from finetune_api.status import Lineage
from finetune_trainer.storage.hub.uris import pinned_commit
from finetune_trainer.storage.protocol import OnBytes, sha256_file

LIBRARIES = (
    "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """Return the versions of Python and the training libraries, without importing them."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def digest_folder(directory: Path, on_bytes: OnBytes | None = None) -> dict[str, str]:
    """Return the SHA-256 (hex) of every file below a folder, by relative path."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): sha256_file(path, on_bytes) for path in paths}


def combined_sha256(files: Mapping[str, str]) -> str:
    """Return one SHA-256 (hex) over names and digests, in the format of `sha256sum`."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def status_lineage(
    config: JobConfig,
    *,
    dataset_sha256: str,
    preflight_sha256: str | None = None,
    model_files: Mapping[str, str] | None = None,
    initial_adapter_sha256: str | None = None,
    teacher_revision: str | None = None,
    teacher_sha256: str | None = None,
    trained: bool = True,
) -> Lineage:
    """Return the status block; preflight passes no digests of the weights and `trained=False`."""
    return Lineage(
        base_model_uri=config.spec.model.uri,
        base_model_revision=pinned_commit(config.spec.model),
        base_model_sha256=combined_sha256(model_files) if model_files else None,
        dataset_sha256=dataset_sha256,
        preflight_sha256=preflight_sha256,
        config_sha256=config.config_sha256,
        trainer_image=os.environ.get(ENV_IMAGE) or None,
        seed=config.spec.hyperparameters.seed,
        library_versions=library_versions() if trained else None,
        parent=config.parent,
        reward_job=config.reward_job,
        initial_adapter_sha256=initial_adapter_sha256,
        teacher_revision=teacher_revision,
        teacher_sha256=teacher_sha256,
    )


def build_lineage(
    config: JobConfig,
    result: Report,
    *,
    model_files: Mapping[str, str],
    template_sha256: str,
    dataset: Mapping[str, Any],
    device: str,
    initial_adapter_uri: str | None = None,
    teacher: Mapping[str, Any] | None = None,
    config_file: str = "",
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Return the content of `lineage.json`; `dataset` is preflight's `dataset/summary.json`, `config_file` the text of
    finetune_config.yaml, `seconds` the duration of the training so far."""
    wire = result.to_wire()
    completed = datetime.now(UTC)
    metrics = wire.get("metrics", {})
    return {
        "job": {
            "namespace": config.namespace,
            "name": config.name,
            "uid": config.uid,
            "attempt": config.attempt,
            "configSHA256": config.config_sha256,
        },
        "startedTime": _to_rfc3339(completed - timedelta(seconds=seconds)),
        "completedTime": _to_rfc3339(completed),
        "configFile": {"path": Artifact.CONFIG.value, "sha256": hashlib.sha256(config_file.encode()).hexdigest()},
        "baseModel": {
            "uri": config.spec.model.uri,
            "revision": pinned_commit(config.spec.model),
            "sha256": combined_sha256(model_files),
            "files": dict(sorted(model_files.items())),
            "chatTemplateSHA256": template_sha256,
        },
        **({"chatTemplate": dataset["chatTemplate"]} if "chatTemplate" in dataset else {}),
        **({"teacher": teacher} if teacher else {}),
        **_ancestors(config, wire.get("lineage", {}), initial_adapter_uri),
        "dataset": {
            "sources": dataset.get("sources", []),
            **({"blend": dataset["blend"]} if "blend" in dataset else {}),
            "files": dataset.get("files", []),
            "counts": dataset.get("status", {}),
        },
        "trainer": {
            "image": os.environ.get(ENV_IMAGE) or None,
            "device": device,
            "versions": library_versions(),
            "seed": config.spec.hyperparameters.seed,
        },
        "resolved": wire.get("resolved", {}),
        "metrics": metrics,
        "earlyStopping": wire.get("earlyStopping"),
        "lastStep": wire.get("lastStep"),
        "chosenStep": metrics.get("bestStep", wire.get("lastStep")),
        "outputURI": config.output_key(),
        "outcome": wire["outcome"],
        **_registry_entry(config, wire),
    }


def _registry_entry(config: JobConfig, result: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the entry for Kubeflow's Model Registry; none for a model that did not meet its gate."""
    if result["outcome"] == Outcome.GATE_NOT_MET:
        return {}
    is_full = result.get("resolved", {}).get("method") == Method.FULL
    entry = {
        "name": config.name,
        "uri": f"{config.output_key()}/{Artifact.MERGED if is_full else Artifact.ADAPTER}",
        "model_format_name": "safetensors" if is_full else "peft",
        "model_source_kind": "kubernetes",
        "model_source_class": f"{names.PLURAL}.{names.GROUP}",
        "model_source_group": config.namespace,
        "model_source_name": config.name,
        "model_source_id": config.uid,
    }
    return {"modelRegistry": entry}


def _to_rfc3339(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ancestors(config: JobConfig, status: Mapping[str, Any], initial_adapter_uri: str | None) -> dict[str, Any]:
    """Return the jobs and the adapter that this result builds on, and the job's annotations, if any."""
    found: dict[str, Any] = {name: status[name] for name in ("parent", "rewardJob") if name in status}
    if initial_adapter_uri:
        found["initialAdapter"] = {"uri": initial_adapter_uri, "sha256": status.get("initialAdapterSHA256")}
    if config.spec.lineage and config.spec.lineage.annotations:
        found["annotations"] = dict(config.spec.lineage.annotations)
    return found
