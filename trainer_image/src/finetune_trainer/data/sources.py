"""Resolve a dataset URI to objects: one object, a prefix, a pattern or a repository on a hub."""

import difflib
import logging
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from finetune_api.handoff import ExitCode
from finetune_api.inputs.sources import DataFiles
from finetune_trainer.data.patterns import WILDCARD, split_pattern
from finetune_trainer.data.rows import NamedPath
from finetune_trainer.data.split_names import choose_split
from finetune_trainer.data.subsets import choose_subset
from finetune_trainer.errors import ObjectMissing, TrainerError, name_some
from finetune_trainer.storage.hub.cards import read_card
from finetune_trainer.storage.hub.uris import is_hub_uri, parse_commit, parse_hub_uri
from finetune_trainer.storage.protocol import Entry, OnBytes, ReadableStore, join_uri, sha256_file
from finetune_trainer.storage.transfers import transfer_all

logger = logging.getLogger(__name__)

MAX_OBJECTS = 10_000
SHOWN = 5
PLAIN_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
SUFFIXES = (*PLAIN_SUFFIXES, *(f"{suffix}.{packed}" for suffix in PLAIN_SUFFIXES for packed in ("gz", "bz2", "zst")))
NOT_ROWS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that the datasets library writes next to the rows."""


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One object with rows; a hub URI is pinned to its commit."""

    uri: str
    size: int


@dataclass(frozen=True, slots=True)
class FetchedObject:
    """A downloaded object with rows; `file_name` is by whose suffix its format is chosen."""

    uri: str
    path: Path
    size: int
    sha256: str
    file_name: str = ""

    @property
    def named(self) -> NamedPath:
        """Return the local file, under its URI."""
        return NamedPath(self.path, self.uri, self.file_name)

    def to_dict(self) -> dict[str, object]:
        """Return the entry for the summary and the lineage."""
        commit = parse_commit(self.uri)
        return {"uri": self.uri, "sha256": self.sha256, "size": self.size} | ({"revision": commit} if commit else {})


@dataclass(frozen=True, slots=True)
class SourceObjects:
    """The objects with rows, and the URIs of the skipped ones that are not data files by their names."""

    found: list[SourceObject]
    ignored: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FetchedSource:
    """The downloaded objects with rows, and the URIs of the skipped ones."""

    files: list[FetchedObject]
    ignored: list[str]


def resolve_source(source: DataFiles, storage: ReadableStore, place: str = "train") -> SourceObjects:
    """Return the objects of `spec.dataset.<place>`, ordered by key; raises DatasetUnusable if there are none.

    `place` starts with `train` or `validation`: files of a hub are chosen by the split in their names.
    """
    uri = storage.pin(source.uri, source.revision)
    root, key = _split(uri)
    ignored: list[str] = []
    if WILDCARD.search(key):
        found, folder = _matching(storage, root, key)
        why = f"nothing matches {key}"
    else:
        size = storage.size(uri) if key and not key.endswith("/") else None
        if size is not None:
            return SourceObjects([SourceObject(uri, size)])
        found, ignored = _data_files(storage, uri.rstrip("/"))
        folder = _below(root, key.rstrip("/").rpartition("/")[0])
        is_one_local = len(found) == 1 and storage.file_name(found[0].uri) != found[0].uri  # it was named by itself
        found = _choose_of_hub(found, source, uri, place, storage) if is_hub_uri(uri) and not is_one_local else found
        why = "no such object, and no data files in a folder of that name" if key else "it contains no data file"
    if not found:
        raise _nothing(source.uri, place, why, folder, [entry.key for entry in storage.list(folder)])
    if len(found) > MAX_OBJECTS:
        why = f"{len(found):,} objects exceed the limit of {MAX_OBJECTS:,}: merge them or name fewer"
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{source.uri}: {why}")
    return SourceObjects(found, ignored)


def _choose_of_hub(
    found: list[SourceObject], source: DataFiles, uri: str, place: str, storage: ReadableStore
) -> list[SourceObject]:
    """Return the files of a repository or of a folder in it: of one subset, if its card lists several, and one
    split."""
    if found and not parse_hub_uri(uri).path:
        root = f"{uri.rstrip('/')}/"
        by_key = {one.uri.removeprefix(root): one for one in found}
        keys = choose_subset(list(by_key), read_card(uri, storage), source, place)
        if keys is not None:
            return [by_key[key] for key in keys]
    by_uri = {one.uri: one for one in found}
    return [by_uri[one] for one in choose_split(list(by_uri), source.uri, place.partition(".")[0])]


def fetch_source(
    source: DataFiles, storage: ReadableStore, directory: Path, place: str, on_bytes: OnBytes
) -> FetchedSource:
    """Download every object of the source into a new local folder, and log the skipped ones."""
    resolved = resolve_source(source, storage, place)
    objects = resolved.found
    if resolved.ignored:
        logger.warning("%s: skipped, not data files: %s", source.uri, name_some(resolved.ignored))
    shutil.rmtree(directory, ignore_errors=True)
    paths = [directory / f"{number:05d}" for number in range(len(objects))]
    try:
        transfer_all(
            (one.size, partial(storage.download, one.uri, path, on_bytes))
            for one, path in zip(objects, paths, strict=True)
        )
    except ObjectMissing as error:
        message = f"{error.message}: correct spec.dataset.{place}.uri, or upload the rows"
        raise TrainerError(ExitCode.DATASET_UNUSABLE, message) from None
    fetched = [
        FetchedObject(
            one.uri,
            path,
            path.stat().st_size,
            sha256_file(path, lambda _count: on_bytes(0)),
            _format_name(one.uri, storage),
        )
        for one, path in zip(objects, paths, strict=True)
    ]
    _check_digest(source, fetched, place)
    return FetchedSource(fetched, resolved.ignored)


def fetch_object(uri: str, sha256: str | None, storage: ReadableStore, path: Path, on_bytes: OnBytes) -> FetchedObject:
    """Download the one object of `spec.evaluation.ability` and check its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        storage.download(uri, path, on_bytes)
    except ObjectMissing as error:
        message = f"{error.message}: correct spec.evaluation.ability.uri, or upload the questions"
        raise TrainerError(ExitCode.DATASET_UNUSABLE, message) from None
    found = sha256_file(path, lambda _count: on_bytes(0))
    if sha256 and found != sha256:
        message = f"{uri} has the SHA-256 {found}, which differs from spec.evaluation.ability.sha256"
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{message}: the questions changed")
    return FetchedObject(uri, path, path.stat().st_size, found, _format_name(uri, storage))


def _format_name(uri: str, storage: ReadableStore) -> str:
    """Return the name by whose suffix the format is chosen: that of a local file, if it has one of rows."""
    name = storage.file_name(uri)
    return name if name.lower().endswith(SUFFIXES) else uri


def _check_digest(source: DataFiles, fetched: list[FetchedObject], place: str) -> None:
    if not source.sha256:
        return
    found = fetched[0].sha256 if len(fetched) == 1 else f"{len(fetched)} objects"
    if found != source.sha256:
        message = f"has the SHA-256 {found}, which differs from spec.dataset.{place}.sha256: the rows changed"
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{source.uri} {message}")


def _split(uri: str) -> tuple[str, str]:
    """Split a URI into its bucket, claim or repository and the key in it."""
    if is_hub_uri(uri):
        key = parse_hub_uri(uri).path
        root = uri.rstrip("/").removesuffix(f"/{key}") if key else uri.rstrip("/")
        return root, key + ("/" if key and uri.endswith("/") else "")
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def _below(root: str, folder: str) -> str:
    return join_uri(root, folder) if folder else root


def _matching(storage: ReadableStore, root: str, pattern: str) -> tuple[list[SourceObject], str]:
    """Return the objects that match the pattern, except hidden ones, and the folder that was listed."""
    above, keys = split_pattern(pattern)
    folder = _below(root, above.rstrip("/"))
    entries = [entry for entry in storage.list(folder) if keys.fullmatch(entry.key) and not _is_hidden(entry.key)]
    return _objects(folder, entries), folder


def _data_files(storage: ReadableStore, folder: str) -> tuple[list[SourceObject], list[str]]:
    """Return the data files of a folder and the URIs of the others, without those of the tools that wrote the rows."""
    entries = storage.list(folder)
    others = [entry for entry in entries if not (is_data_file(entry.key) or _is_of_a_tool(entry.key))]
    data_files = [entry for entry in entries if is_data_file(entry.key)]
    return _objects(folder, data_files), [one.uri for one in _objects(folder, others)]


def _objects(folder: str, entries: list[Entry]) -> list[SourceObject]:
    return [SourceObject(join_uri(folder, entry.key), entry.size) for entry in sorted(entries, key=lambda one: one.key)]


def is_data_file(key: str) -> bool:
    """Return whether a file contains rows, judged by its name."""
    return key.lower().endswith(SUFFIXES) and not _is_of_a_tool(key)


def _is_of_a_tool(key: str) -> bool:
    return key.rpartition("/")[2] in NOT_ROWS or _is_hidden(key)


def _is_hidden(key: str) -> bool:
    return any(part.startswith((".", "_")) for part in key.split("/"))


def _nothing(uri: str, place: str, why: str, folder: str, keys: list[str]) -> TrainerError:
    there = f"{folder} contains {', '.join(_nearby(keys, uri))}" if keys else f"{folder} is empty"
    fix = f"correct spec.dataset.{place}.uri, or upload the rows"
    return TrainerError(ExitCode.DATASET_UNUSABLE, f"{uri}: {why}; {there}: {fix}")


def _nearby(keys: list[str], uri: str) -> list[str]:
    """Return a few keys, the most similar first."""
    name = uri.rstrip("/").rpartition("/")[2]
    close = difflib.get_close_matches(name, keys[:MAX_OBJECTS], n=SHOWN, cutoff=0.6)
    return list(dict.fromkeys([*close, *keys[:SHOWN]]))[:SHOWN]
