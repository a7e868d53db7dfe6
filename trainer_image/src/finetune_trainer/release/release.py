"""Release a published result: verify it, then give it the name under which a server answers, or point to it."""

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from finetune_api.handoff import SERVER_KEY_FILE, Artifact
from finetune_api.release import FilesTarget, ReleaseConfig, ReleasedResult, ReleaseOutcome, ReleaseReport
from finetune_trainer.release.candidate import Candidate, Refused, report, verify
from finetune_trainer.release.to_vllm import VLLMRelease
from finetune_trainer.release.vllm_server import CREDENTIALS, ServerRefusedError
from finetune_trainer.report.serving import adapter_obstacles, highest_rank, max_lora_rank
from finetune_trainer.storage.protocol import Store, join_uri

POINTER = "release.json"


def release(
    config: ReleaseConfig,
    storage: Store,
    workspace: Path,
    volume: Path,
    *,
    secrets: Path | None = None,
    check: Callable[[], None] = lambda: None,
) -> ReleaseReport:
    """Release what verifies; return what answers afterwards. Raises ServerLostError if a retry may succeed.

    `secrets` is the folder of the server's mounted key and authority. `check` is called before each request to the
    server, and raises after SIGTERM.
    """
    try:
        found = verify(config, storage, workspace)
        if config.target.files:
            return point_to(config, config.target.files, found, storage)
        if found.folder != Artifact.ADAPTER:
            raise Refused("the result has no adapter: release it with target.files, and serve its merged/ folder")
        _require_served(found)
        if config.target.vllm is None:
            return report(config, ReleaseOutcome.VERIFIED, f"{len(found.files)} files match the manifest")
        return VLLMRelease(config, config.target.vllm, found, volume).run(storage, secrets, check)
    except Refused as refused:
        return report(config, refused.outcome, str(refused))
    except ServerRefusedError as refused:
        fix = f": set {CREDENTIALS}, or correct its key {SERVER_KEY_FILE}" if refused.status in {401, 403} else ""
        # A question may be what ends the server: it is not asked again.
        outcome = ReleaseOutcome.FAILED if refused.status >= 500 else ReleaseOutcome.REFUSED
        return report(config, outcome, f"{refused}{fix}; what answered before keeps the name")


def _require_served(found: Candidate) -> None:
    """Raise Refused for an adapter that vLLM, which KServe runs too, is known to refuse."""
    certain = [f"{one.reason}: {one.fix}" for one in adapter_obstacles(found.adapter) if one.is_certain]
    if certain:
        raise Refused(f"vLLM does not serve this adapter: {'; '.join(certain)}")


def point_to(config: ReleaseConfig, target: FilesTarget, found: Candidate, storage: Store) -> ReleaseReport:
    """Write the pointer, which is one object; the one before it must be of the same release."""
    uri, now = join_uri(target.uri, POINTER), datetime.now(UTC)
    owner = {"namespace": config.namespace, "name": config.name}
    before = _read_pointer(storage, uri)
    if before and before.get("release") != owner:
        raise Refused(f"{uri} belongs to another release ({before.get('release')}): name another target.files.uri")
    new = config.candidate.model_copy(update={"released_time": now})
    old = None
    with suppress(ValidationError):
        old = ReleasedResult.model_validate(before.get("released")) if before else None
    if old and (old.uri, old.manifest_sha256) == (new.uri, new.manifest_sha256):
        return report(config, ReleaseOutcome.RELEASED, f"{uri} names it already", answering=old)
    rank = highest_rank(found.adapter)
    lineage = found.manifest.result.lineage
    content = {
        "release": owner,
        "released": new.to_wire(),
        "previous": old.to_wire() if old else None,
        "folder": join_uri(config.candidate.uri, found.folder),
        "files": [file.model_dump(by_alias=True) for file in found.files],
        "baseModel": {"uri": lineage.base_model_uri, "revision": lineage.base_model_revision} if lineage else None,
        "maxLoraRank": max_lora_rank(rank) if rank else None,
    }
    data = json.dumps(content, indent=2).encode()
    storage.put(uri, data)
    return report(config, ReleaseOutcome.RELEASED, f"{uri} names it", answering=new, replaced=old)


def _read_pointer(storage: Store, uri: str) -> dict[str, object] | None:
    data = storage.read(uri)
    try:
        found = json.loads(data) if data else None
    except ValueError:
        found = {}
    return found if found is None or isinstance(found, dict) else {}
