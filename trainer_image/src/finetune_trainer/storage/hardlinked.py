"""Hard links to files that another process of the same pod has downloaded."""

import os
from pathlib import Path

from finetune_trainer.storage.protocol import Entry, OnBytes, Store


class HardlinkedStore:
    """A store that links files from a neighbour's workspace; the neighbour must have finished its downloads."""

    def __init__(self, storage: Store, workspace: Path, neighbour: Path) -> None:
        self._storage, self._workspace, self._neighbour = storage, workspace, neighbour
        self.pin, self.probe, self.list, self.first = storage.pin, storage.probe, storage.list, storage.first
        self.upload, self.put, self.put_if_absent = storage.upload, storage.put, storage.put_if_absent
        self.remove, self.read, self.read_range = storage.remove, storage.read, storage.read_range
        self.size, self.sha256, self.file_name = storage.size, storage.sha256, storage.file_name

    def download(self, uri: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Link the neighbour's file, else copy the object."""
        if not self._link(path):
            self._storage.download(uri, path, on_bytes)

    def download_entry(self, uri: str, entry: Entry, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Link the neighbour's file, else copy the object."""
        if not self._link(path):
            self._storage.download_entry(uri, entry, path, on_bytes)

    download_folder, download_listed = Store.download_folder, Store.download_listed

    def _neighbour_path(self, path: Path) -> Path | None:
        """Return the neighbour's path of a file; None outside the workspace, as in the model cache."""
        is_inside = path.is_relative_to(self._workspace)
        return self._neighbour / path.relative_to(self._workspace) if is_inside else None

    def _link(self, path: Path) -> bool:
        source = self._neighbour_path(path)
        if not source or not source.is_file():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(source, path)
        return True
