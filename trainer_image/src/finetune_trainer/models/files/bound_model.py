"""The models that preflight checked, and whether those that are downloaded are the same."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune_api.handoff import ExitCode, JobConfig
from finetune_api.inputs.claims import is_claim_uri
from finetune_api.spec import Model
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.initial import InitialAdapter
from finetune_trainer.models.files.base_model import (
    check_text_files,
    is_model_file,
    is_text_file,
    is_weight_file,
    list_model_files,
)
from finetune_trainer.models.files.cache import fetch_model
from finetune_trainer.storage.hub.uris import pinned_model_uri
from finetune_trainer.storage.protocol import Entry, OnBytes, ReadableStore, sha256_file


def describe_model(model: Model, directory: Path, storage: ReadableStore) -> dict[str, Any]:
    """Return the entry for preflight's summary: the digests of the text files in `directory`, and for each file of
    weights what storage lists (SHA-256, or the ETag)."""
    weights = digests_of(entry for entry in storage.list(pinned_model_uri(model)) if is_weight_file(entry.key))
    named = model.model_dump(include={"uri", "revision"}, exclude_none=True)
    return named | {"files": _digest_text_files(directory), "weights": weights}


def fetch_as_checked(
    config: JobConfig, checked: Mapping[str, Any], storage: ReadableStore, directory: Path, on_bytes: OnBytes
) -> Path:
    """Return the folder of the job's model: in the cache, else downloaded into `directory`.

    Raises ModelUnavailable if it differs from what preflight checked, or if its checks fail now; of the weights what
    storage lists is compared, before and by the download. A summary that an older version wrote has no digests; then
    only the checks are repeated.
    """
    uri = pinned_model_uri(config.spec.model)
    entries = list_model_files(uri, storage)
    if any(checked.get("weights", {}).values()):
        require_listed(uri, checked["weights"], [entry for entry in entries if is_weight_file(entry.key)])
    folder = fetch_model(config, entries, storage, directory, on_bytes)
    if "files" in checked:
        _compare(uri, checked["files"], _digest_text_files(folder), "SHA-256")
    found = {path.name: Entry(path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file()}
    check_text_files(uri, folder, found)
    return folder


def describe_adapter(adapter: InitialAdapter) -> dict[str, Any]:
    """Return the entry for preflight's summary: where the adapter to continue from is, and its digests."""
    return {"uri": adapter.uri, "files": adapter.digests}


def require_adapter_as_checked(adapter: InitialAdapter, checked: Mapping[str, Any]) -> None:
    """Raise ModelUnavailable if the adapter that was fetched differs from what preflight checked."""
    if checked:
        _compare(adapter.uri, checked["files"], adapter.digests, "SHA-256")


def digests_of(entries: Iterable[Entry]) -> dict[str, str]:
    """Return what storage lists for each file: its SHA-256, or the ETag."""
    return {entry.key: entry.sha256 or entry.etag for entry in entries}


def require_listed(uri: str, checked: Mapping[str, str], entries: Iterable[Entry]) -> None:
    """Raise ModelUnavailable if storage lists other files, or another content of one, than preflight checked."""
    _compare(uri, checked, digests_of(entries), "size or time of change" if is_claim_uri(uri) else "ETag")


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
