"""Find the files for `FILE…` of a command: single files, the data files of a folder, or the matches of a pattern."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.handoff import ExitCode
from finetune_trainer.data.patterns import WILDCARD, split_pattern
from finetune_trainer.data.rows import NamedPath
from finetune_trainer.data.sources import is_data_file
from finetune_trainer.errors import InvalidConfig, TrainerError

SHOWN = 5


@dataclass(slots=True)
class LocalFiles:
    """The files to read, in order, and the names of the skipped files without rows."""

    read: list[NamedPath] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Return the total size of the existing files in bytes."""
        return sum(file.path.stat().st_size for file in self.read if file.path.is_file())


def find_files(arguments: Iterable[str], written: Iterable[Path]) -> LocalFiles:
    """Return every file to read once; files that will be `written` are excluded.

    Raises TrainerError if an argument matches no file.
    """
    finder = _Finder(frozenset(path.resolve() for path in written))
    found = LocalFiles()
    seen: set[Path] = set()
    for argument in arguments:
        files = finder.find(argument)
        for file in files.read:
            if file.path.resolve() not in seen:
                seen.add(file.path.resolve())
                found.read.append(file)
        found.ignored += files.ignored
    return found


@dataclass(frozen=True, slots=True)
class _Finder:
    written: frozenset[Path]

    def find(self, argument: str) -> LocalFiles:
        path = Path(argument)
        if path.resolve() in self.written:
            raise InvalidConfig(f"{argument} would be overwritten: choose another folder for --out")
        if path.is_dir():
            return self._data_files(path)
        if WILDCARD.search(argument) and not path.exists():
            return self._matching(argument)
        return LocalFiles([NamedPath(path, argument)])

    def _data_files(self, folder: Path) -> LocalFiles:
        found = LocalFiles()
        for key in self._walk(folder):
            if is_data_file(key):
                found.read.append(_named(folder, key))
            else:
                found.ignored.append(str(folder / key))
        if not found.read:
            there = f"it contains {', '.join(found.ignored[:SHOWN])}" if found.ignored else "it is empty"
            raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{folder} contains no data file: {there}")
        return found

    def _matching(self, pattern: str) -> LocalFiles:
        """Return the files that match, whatever their extension, except hidden ones."""
        above, wanted = split_pattern(pattern)
        folder = Path(above or ".")
        found = filter(wanted.fullmatch, self._walk(folder))
        keys = [key for key in found if not key.rpartition("/")[2].startswith(".")]
        if not keys:
            raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{pattern}: nothing in {folder} matches")
        return LocalFiles([_named(folder, key) for key in keys])

    def _walk(self, folder: Path) -> list[str]:
        """Return every file below, sorted by key; a hidden folder is one key, because its files are not read."""
        keys = []
        for parent, folders, files in os.walk(folder):
            below = Path(parent).relative_to(folder)
            here = Path(parent).resolve()
            keys += [(below / name).as_posix() for name in files if here / name not in self.written]
            keys += [(below / name).as_posix() for name in folders if name.startswith(".")]
            folders[:] = [name for name in folders if not name.startswith(".")]
        return sorted(keys)


def _named(folder: Path, key: str) -> NamedPath:
    return NamedPath(folder / key, str(folder / key))
