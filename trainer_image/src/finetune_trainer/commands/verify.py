"""`finetune-trainer verify`: check that a result is complete, its adapter valid and its lineage consistent."""

import json
import logging
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from finetune_api.handoff import ADAPTER_WEIGHTS, Artifact, ManifestFile
from finetune_api.spec import Storage as StorageSpec
from finetune_api.text.printable import printable
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.adapters.check import find_adapter_faults
from finetune_trainer.publishing.lineage_chain import Link, follow_chain, read_result
from finetune_trainer.publishing.publish import find_file_faults
from finetune_trainer.publishing.unlisted import describe_unlisted, find_unlisted
from finetune_trainer.storage.hub.uris import SCHEME
from finetune_trainer.storage.local import LocalStore, parse_maps
from finetune_trainer.storage.protocol import ReadableStore, Store, join_uri
from finetune_trainer.storage.routed import RoutedStore
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import connect_s3_here


@dataclass
class VerifyResult:
    """The checked files and the faults; without faults the result is verified."""

    uri: str
    faults: list[str] = field(default_factory=list)
    files: list[ManifestFile] = field(default_factory=list)
    chain: list[Link] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the JSON output."""
        files = [file.model_dump(by_alias=True) for file in self.files]
        chain = [asdict(link) for link in self.chain]
        content = {"uri": self.uri, "ok": not self.faults, "faults": self.faults, "files": files, "chain": chain}
        return json.dumps(content, indent=2) + "\n"

    def to_text(self) -> str:
        """Return the text output: a line for each good file, then the lineage chain, then the conclusion."""
        lines = [f"ok  {file.sha256}  {printable(file.path)}" for file in self.files]
        lines += [f"{'  ' * link.depth}{printable(str(link))}" for link in self.chain]
        if not self.faults:
            lines.append(f"{self.uri}: {len(self.files)} files match the manifest")
        return "".join(f"{line}\n" for line in lines)


def verify_published(uri: str, endpoint: str | None, maps: list[str], *, as_json: bool = False) -> int:
    """Print the result; return 0 without faults, else 1. Raises if storage cannot be read."""
    verdict = verify_result(uri.rstrip("/"), _storage(uri.rstrip("/"), endpoint, maps))
    sys.stdout.write(printable(verdict.to_json() if as_json else verdict.to_text(), lines=True))
    for fault in verdict.faults:
        sys.stderr.write(f"BAD {printable(fault)}\n")
    return 1 if verdict.faults else 0


def verify_result(uri: str, storage: ReadableStore) -> VerifyResult:
    """Verify every file by its digest, the adapter by its tensors, and the lineage back to the base model."""
    verdict = VerifyResult(uri)
    found = read_result(uri, storage)
    if isinstance(found, str):
        verdict.faults.append(found)
        return verdict
    verdict.faults += find_file_faults(uri, found.files, storage, on_file=verdict.files.append)
    if unlisted := find_unlisted(uri, found.files, storage):
        verdict.faults.append(describe_unlisted(uri, unlisted))
    good = {file.path for file in verdict.files}
    lineage, verdict.chain, faults = follow_chain(uri, found, storage)
    verdict.faults += faults
    weights = f"{Artifact.ADAPTER}/{ADAPTER_WEIGHTS}"
    if weights in good:
        with tempfile.TemporaryDirectory(prefix="finetune-verify-") as scratch:
            path = Path(scratch) / ADAPTER_WEIGHTS
            storage.download(join_uri(uri, weights), path)
            config = storage.read(join_uri(uri, f"{Artifact.ADAPTER}/adapter_config.json"))
            base = lineage.base_model.uri if lineage else ""
            verdict.faults += [f"adapter: {fault}" for fault in find_adapter_faults(path, config or b"", base)]
    return verdict


def _storage(uri: str, endpoint: str | None, maps: list[str]) -> ReadableStore:
    logging.getLogger("finetune_trainer").setLevel(logging.WARNING)

    def open_s3() -> Store:
        return S3Store(connect_s3_here(StorageSpec(endpoint=endpoint), [endpoint] if endpoint else [], "--endpoint"))

    own = {} if uri.startswith("s3://") else {uri: _require_folder(uri)}
    return RoutedStore(open_s3, open_s3, LocalStore(parse_maps(maps) | own))


def _require_folder(uri: str) -> Path:
    """Return the folder with a copy of a result; a URI that is read from no store here is refused."""
    if Path(uri).is_dir():
        return Path(uri)
    pushed = ": a push to a hub has neither manifest nor lineage" if uri.startswith(SCHEME) else ""
    raise InvalidConfig(f"URI {uri}: there is no such folder{pushed}; write s3://… or the folder of a result")
