"""Push a published result to the registry of `output.oci`."""

import shutil
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from finetune_api.handoff import Artifact
from finetune_api.output import OciOutput
from finetune_api.status import Artifacts
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.errors import InvalidConfig, StorageUnavailable
from finetune_trainer.publishing.published_files import collect_files
from finetune_trainer.storage.watch import Watch

T = TypeVar("T")

CHECK_SECONDS = 30.0
RETRY_SECONDS = 180.0
"""How long a step of the push is retried; the result is published, and a GPU may be held."""
IDLE_SECONDS = 330.0
"""How long no byte may move before the push counts as stalled; a registry may respond late to a large blob."""
POLL_SECONDS = 0.2
MANIFEST_DIGEST = "finetune.dev/manifest-sha256"
JOB = "finetune.dev/job"


def check_registry(run: RunContext, output: OciOutput) -> None:
    """Raise if the result could not be pushed: no such registry or repository, or a user without the right."""
    from finetune_trainer.storage.oci.connection import connect_registry  # noqa: PLC0415 - only these jobs pay for it
    from finetune_trainer.storage.oci.registry import Registry  # noqa: PLC0415

    registry = Registry(connect_registry(output), CHECK_SECONDS, run.stop)
    _watch(run, output, lambda _moved: registry.check())


def push_to_registry(run: RunContext, output: OciOutput, artifacts: Artifacts, tag: str) -> dict[str, str]:
    """Push each folder of the result as a package of its own, that to be served last; return their references."""
    has_model = bool(artifacts.merged_uri)
    parts = [
        (Artifact.GGUF, "gguf_reference", f"{tag}-gguf", bool(artifacts.gguf_uri)),
        (Artifact.ADAPTER, "adapter_reference", f"{tag}-adapter", bool(artifacts.adapter_uri) and has_model),
        (Artifact.MERGED if has_model else Artifact.ADAPTER, "reference", tag, True),
    ]
    return {
        name: _push_folder(run, output, folder, own_tag, artifacts.manifest_sha256 or "")
        for folder, name, own_tag, is_published in parts
        if is_published
    }


def _push_folder(run: RunContext, output: OciOutput, folder: Artifact, tag: str, manifest: str) -> str:
    from finetune_trainer.storage.oci.connection import connect_registry  # noqa: PLC0415 - only these jobs pay for it
    from finetune_trainer.storage.oci.package import build_package  # noqa: PLC0415
    from finetune_trainer.storage.oci.registry import Registry  # noqa: PLC0415

    config, scratch = run.config, run.workspace / "oci-push"
    annotations = {JOB: f"{config.namespace}/{config.name}", MANIFEST_DIGEST: manifest}
    try:
        files = collect_files(run, folder, scratch)
        package = build_package(output.format, files, config.name, annotations, run.on_bytes)
        registry = Registry(connect_registry(output), RETRY_SECONDS, run.stop)
        return _watch(run, output, partial(registry.push, package, tag))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _watch(run: RunContext, output: OciOutput, work: Callable[[Callable[[], None]], T]) -> T:
    """Return the result of the work; leave it at SIGTERM, and if nothing moves."""
    where = f"oci://{output.repository}"
    watch = Watch("oci-push", run.stop, run.on_work, IDLE_SECONDS, POLL_SECONDS)
    stalled = StorageUnavailable(f"{where}: the registry does not respond for {IDLE_SECONDS:.0f} seconds")
    unknown = InvalidConfig(f"{where}: the push failed: see the log of the pod")
    return watch.run(work, stalled, unknown)
