"""The models that preflight checked, and whether those that are loaded are the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.handoff import ExitCode
from finetune_api.inputs.claims import is_claim_uri
from finetune_api.spec import Model
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.initial import InitialAdapter
from finetune_trainer.models.base_model import check_text_files, is_model_file, is_text_file, is_weight_file
from finetune_trainer.rewards.fetch import RewardFolders
from finetune_trainer.storage.hub.uris import pinned_model_uri
from finetune_trainer.storage.protocol import Entry, ReadableStore, sha256_file


def describe_model(model: Model, directory: Path, storage: ReadableStore) -> dict[str, Any]:
    """Return the entry for preflight's summary: the digests of the text files in `directory`, and for each file of
    weights what storage lists (SHA-256, or the ETag)."""
    weights = {
        entry.key: entry.sha256 or entry.etag
        for entry in storage.list(pinned_model_uri(model))
        if is_weight_file(entry.key)
    }
    named = model.model_dump(include={"uri", "revision"}, exclude_none=True)
    return named | {"files": _digest_text_files(directory), "weights": weights}


def require_as_checked(model: Model, checked: Mapping[str, Any], directory: Path, storage: ReadableStore) -> None:
    """Raise ModelUnavailable if the loaded folder differs from what preflight checked, or if its checks fail now.

    A summary that an older version wrote has no digests; then only the checks are repeated.
    """
    uri = pinned_model_uri(model)
    if "files" in checked:
        _compare(uri, checked["files"], _digest_text_files(directory), "SHA-256")
    if any(checked.get("weights", {}).values()):
        listed = {entry.key: entry.sha256 or entry.etag for entry in storage.list(uri) if is_weight_file(entry.key)}
        _compare(uri, checked["weights"], listed, _listed_kind(uri))
    entries = {path.name: Entry(path.name, path.stat().st_size) for path in directory.iterdir() if path.is_file()}
    check_text_files(uri, directory, entries)


def describe_adapter(adapter: InitialAdapter) -> dict[str, Any]:
    """Return the entry for preflight's summary: where the adapter to continue from is, and its digests."""
    return {"uri": adapter.uri, "files": adapter.digests}


def require_adapter_as_checked(adapter: InitialAdapter, checked: Mapping[str, Any]) -> None:
    """Raise ModelUnavailable if the adapter that was fetched differs from what preflight checked."""
    if checked:
        _compare(adapter.uri, checked["files"], adapter.digests, "SHA-256")


def describe_reward_model(reward: RewardFolders, storage: ReadableStore) -> dict[str, Any]:
    """Return the entry for preflight's summary: for each folder what storage lists (SHA-256, or the ETag)."""
    return {uri: _list_files(uri, storage) for uri in reward.uris}


def require_reward_model_as_checked(
    reward: RewardFolders, checked: Mapping[str, Mapping[str, str]], storage: ReadableStore
) -> None:
    """Raise ModelUnavailable if a folder of the reward model is not one, or not as, preflight checked."""
    for uri in reward.uris:
        if checked:
            _compare(uri, checked.get(uri, {}), _list_files(uri, storage), _listed_kind(uri))


def _listed_kind(uri: str) -> str:
    return "size or time of change" if is_claim_uri(uri) else "ETag"


def _list_files(uri: str, storage: ReadableStore) -> dict[str, str]:
    listed = {entry.key: entry.sha256 or entry.etag for entry in storage.list(uri) if is_model_file(entry.key)}
    return {key: digest for key, digest in listed.items() if digest}


def _digest_text_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every text file that is loaded, by its path in the folder."""
    paths = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
    return {key: sha256_file(path) for key, path in paths.items() if is_text_file(key) and is_model_file(key)}


def _compare(uri: str, checked: Mapping[str, str], found: Mapping[str, str], kind: str) -> None:
    names = sorted(name for name in checked.keys() | found.keys() if checked.get(name) != found.get(name))
    if not names:
        return
    name = names[0]
    now, then = found.get(name, "absent"), checked.get(name, "absent")
    problem = f"{uri}: {name} was changed after preflight: its {kind} is {now}, and preflight checked {then}"
    more = f" ({len(names) - 1} more files differ)" if len(names) > 1 else ""
    raise TrainerError(
        ExitCode.MODEL_UNAVAILABLE, f"{problem}{more}: find out who writes there, then create the job again"
    )
