"""Whether the result that a run finds in its output is of the rows and the base that the run names."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.handoff import Artifact, ExitCode, JobConfig
from finetune_trainer.data.sources import resolve_source
from finetune_trainer.errors import ObjectMissing, TrainerError
from finetune_trainer.storage.hub.uris import parse_commit
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import ReadableStore, join_uri


def require_same_inputs(config: JobConfig, storage: ReadableStore, local: LocalStore) -> None:
    """Raise OutputConflict if rows or base differ from those in the result's lineage.

    A job of a cluster is another matter: its rows may be gone by the time that it is created again.
    """
    uri = config.output_key()
    lineage: dict[str, Any] = json.loads(storage.read(join_uri(uri, Artifact.LINEAGE)) or b"{}")
    differing = [*_find_changed_rows(config, lineage, storage), *_find_changed_model(config, lineage, storage, local)]
    if differing:
        folder = local.find(uri) or uri
        problem = f"{folder} has the result of an earlier run with other inputs: {differing[0]}"
        raise TrainerError(ExitCode.OUTPUT_CONFLICT, f"{problem}. Choose another --output, or move that folder away")


def _find_changed_rows(config: JobConfig, lineage: Mapping[str, Any], storage: ReadableStore) -> Iterator[str]:
    dataset = config.spec.dataset
    recorded = {one["uri"]: one["sha256"] for one in lineage.get("dataset", {}).get("sources", [])}
    sources = {place.removeprefix("dataset."): one for place, one in dataset.training_sources().items()}
    objects = [one for place, source in sources.items() for one in resolve_source(source, storage, place)]
    if held_out := dataset.held_out_source():
        objects += resolve_source(held_out, storage, "validation")
    for one in objects if recorded else ():
        if recorded.get(one.uri) != storage.sha256(one.uri):
            yield f"the rows of {one.uri} differ"


def _find_changed_model(
    config: JobConfig, lineage: Mapping[str, Any], storage: ReadableStore, local: LocalStore
) -> Iterator[str]:
    """Compare the files of a base on this machine, or the commit of one on a hub."""
    model, recorded = config.spec.model, lineage.get("baseModel", {})
    if local.find(model.uri) is None:
        commit = parse_commit(storage.pin(model.uri, model.revision))
        if commit and recorded.get("revision") not in {None, commit}:
            yield f"{model.uri} is now at commit {commit}"
        return
    for name, digest in recorded.get("files", {}).items():
        try:
            found = storage.sha256(join_uri(model.uri, name))
        except ObjectMissing:
            found = None
        if found != digest:
            yield f"{name} of {model.uri} differs"
