"""Whether the result that a run finds in its output is of the rows, base and chat template that the run names."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.handoff import Artifact, ExitCode, JobConfig
from finetune_api.inputs.sources import BlendSource, Dataset
from finetune_trainer.data.sources import resolve_source
from finetune_trainer.errors import ObjectMissing, TrainerError
from finetune_trainer.models.files.base_model import is_model_file
from finetune_trainer.pipeline.chat_template import read_choice
from finetune_trainer.storage.hub.uris import strip_commit
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import ReadableStore, join_uri


def require_same_inputs(config: JobConfig, storage: ReadableStore, local: LocalStore) -> None:
    """Raise OutputConflict if rows, base or chat template differ from those in the result's lineage.

    What is not on this machine is not compared: a hub may have moved on, and the rows of a cluster's job may be gone.
    """
    uri = config.output_key()
    lineage: dict[str, Any] = json.loads(storage.read(join_uri(uri, Artifact.LINEAGE)) or b"{}")
    differing = [
        *_find_changed_rows(config, lineage, storage, local),
        *_find_changed_model(config, lineage, storage, local),
        *_find_changed_template(config, lineage),
    ]
    if differing:
        folder = local.find(uri) or uri
        problem = f"{folder} has the result of an earlier run with other inputs: {differing[0]}"
        raise TrainerError(ExitCode.OUTPUT_CONFLICT, f"{problem}. Choose another --output, or move that folder away")


def _find_changed_rows(
    config: JobConfig, lineage: Mapping[str, Any], storage: ReadableStore, local: LocalStore
) -> Iterator[str]:
    """Compare the files of rows on this machine, by their content."""
    dataset = config.spec.dataset
    sources = {place.removeprefix("dataset."): one for place, one in _sources(dataset).items()}
    objects = [
        strip_commit(one.uri)
        for place, source in sources.items()
        if local.find(source.uri)
        for one in resolve_source(source, storage, place).found
    ]
    read = {strip_commit(one["uri"]): one["sha256"] for one in lineage.get("dataset", {}).get("sources", [])}
    for uri in objects if read else ():
        if read.get(uri) != storage.sha256(uri):
            yield f"the rows of {uri} differ"
    for uri in read.keys() - set(objects):
        if local.find(uri):
            yield f"{uri} is gone"


def _sources(dataset: Dataset) -> dict[str, BlendSource]:
    held_out = dataset.held_out_source()
    return dict(dataset.training_sources()) | ({"validation": held_out} if held_out else {})


def _find_changed_model(
    config: JobConfig, lineage: Mapping[str, Any], storage: ReadableStore, local: LocalStore
) -> Iterator[str]:
    """Compare the files of a base on this machine, by their content."""
    uri, recorded = config.spec.model.uri, lineage.get("baseModel", {}).get("files", {})
    if local.find(uri) is None or not recorded:
        return
    names = [entry.key for entry in storage.list(uri) if is_model_file(entry.key)]
    for name in dict.fromkeys([*recorded, *names]):
        try:
            found = storage.sha256(join_uri(uri, name))
        except ObjectMissing:
            found = None
        if found != recorded.get(name):
            yield f"{name} of {uri} differs"


def _find_changed_template(config: JobConfig, lineage: Mapping[str, Any]) -> Iterator[str]:
    """Compare the text of a ConfigMap's chat template, of which the spec has only the name."""
    found, recorded = read_choice(config).text_sha256, lineage.get("chatTemplate", {}).get("sha256")
    if found and recorded and found != recorded:
        yield "the chat template of model.chatTemplate.configMapKeyRef differs"
