"""The volume of a release: a folder for each released adapter, a link from the served name to the one in use, and the
release that uses this name."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Concatenate, ParamSpec, TypeVar

from finetune_api.handoff import Artifact
from finetune_api.release import ReleasedResult
from finetune_trainer.errors import StorageUnavailable, one_line
from finetune_trainer.storage.protocol import ReadableStore, describe_files, join_uri

RECORD = ".release.json"
"""In each folder: which result it is a copy of."""
RECORD_BYTES = 4096
DIGITS = 12
DENIED = "let the user of the release's pods write there"
FULL = "make the claim larger, or remove what no server reads"
FIXES = {
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
    errno.EROFS: "mount the claim with the right to write",
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
}
P = ParamSpec("P")
R = TypeVar("R")
Method = Callable[Concatenate["ReleaseVolume", P], R]


def names_claim(method: Method[P, R]) -> Method[P, R]:
    """Let a method raise StorageUnavailable with the claim, the path and the fix in place of OSError."""

    @wraps(method)
    def call(volume: "ReleaseVolume", /, *args: P.args, **more: P.kwargs) -> R:
        try:
            return method(volume, *args, **more)
        except OSError as error:
            raise StorageUnavailable(volume.explain(error)) from None

    return call


class ReleaseVolume:
    """The folders `<name>.<digest>` of one served name, as this process and as the server see them."""

    def __init__(self, here: Path, there: str, name: str, claim: str) -> None:
        self._here = here
        self._there = PurePosixPath(there)
        self._name = name
        self._claim = claim

    def explain(self, error: OSError) -> str:
        """Return an error with the claim, the path on it and the fix."""
        path = Path(str(error.filename or self._here))
        where = f", at {path.relative_to(self._here)}" if self._here in path.parents else ""
        fix = f": {FIXES[error.errno]}" if error.errno in FIXES else ""
        return f"claim {self._claim}: {error.strerror or error}{where}{fix}"

    def name_of(self, result: ReleasedResult) -> str:
        """Return the name of a result's folder, under which it is also tried."""
        return f"{self._name}.{result.manifest_sha256[:DIGITS]}"

    @property
    def owner_record(self) -> str:
        """Name of the file that names the release."""
        return f".{self._name}.owner"

    def path_of(self, folder: str) -> str:
        """Return the path of a folder on the server."""
        return str(self._there / folder)

    @names_claim
    def own(self, release: str, server: str) -> dict[str, str] | None:
        """Record who uses this name; return the record instead if it is of another release and another server.

        Folders are removed and the link is moved for one server alone.
        """
        record, part, new = self._here / self.owner_record, self._here / f"{self.owner_record}.part", (release, server)
        try:
            with record.open("rb") as file:
                known = {key: one_line(str(value), 200) for key, value in json.loads(file.read(RECORD_BYTES)).items()}
        except (FileNotFoundError, ValueError, AttributeError):
            known = {}
        if known and release != known.get("release") and server != known.get("server"):
            return known
        if tuple(known.values()) != new:
            part.write_text(json.dumps({"release": release, "server": server}), encoding="utf-8")
            os.replace(part, record)
        return None

    @names_claim
    def copy(self, result: ReleasedResult, digests: dict[str, str], storage: ReadableStore) -> str:
        """Copy an adapter into its folder, unless it is there; `digests` are those of its files, by name.

        A folder appears only when it is complete, because another pod may be killed at any point.
        """
        folder = self.name_of(result)
        target, part = self._here / folder, self._here / f".{folder}.part"
        if self._digests(target) == digests:
            return folder
        shutil.rmtree(part, ignore_errors=True)
        storage.download_folder(join_uri(result.uri, Artifact.ADAPTER), part, accept=digests.__contains__)
        if self._digests(part) != digests:
            raise StorageUnavailable(f"{target}: the copied files differ from those of {result.uri}")
        (part / RECORD).write_text(result.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        return folder

    @names_claim
    def find(self, path: str) -> str | None:
        """Return the folder that a server's path leads to, also by the link; None if it is not one of this volume."""
        if PurePosixPath(path).parent != self._there:
            return None
        found = (self._here / PurePosixPath(path).name).resolve()
        return found.name if found.is_dir() and found.parent == self._here.resolve() else None

    def is_link(self, path: str) -> bool:
        """Return whether a server's path is that of the link."""
        return PurePosixPath(path) == self._there / self._name

    def read(self, folder: str) -> ReleasedResult | None:
        """Return the result that a folder is a copy of."""
        try:
            return ReleasedResult.model_validate_json((self._here / folder / RECORD).read_bytes())
        except (OSError, ValueError):
            return None

    @names_claim
    def link(self, folder: str) -> None:
        """Let the served name lead to a folder, for the server's next start; by one rename."""
        part = self._here / f".{self._name}.link"
        part.unlink(missing_ok=True)
        part.symlink_to(folder)
        os.replace(part, self._here / self._name)

    def keep(self, folders: Collection[str]) -> None:
        """Remove the folders of this name but these; what cannot be removed stays."""
        with suppress(OSError):
            for path in self._here.glob(f"{self._name}.*"):
                digits = path.name.removeprefix(f"{self._name}.")
                is_copy = len(digits) == DIGITS and set(digits) <= set("0123456789abcdef") and (path / RECORD).is_file()
                if is_copy and path.name not in folders:
                    shutil.rmtree(path, ignore_errors=True)

    def _digests(self, folder: Path) -> dict[str, str]:
        return {one.path: one.sha256 for one in describe_files(folder) if one.path != RECORD}
