"""`finetune-trainer verify`: proof from outside that a result is whole."""

import sys
from pathlib import Path

from finetune_api.handoff import ManifestFile
from finetune_api.spec import Storage as StorageSpec
from finetune_trainer.local_storage import LocalStorage
from finetune_trainer.publish import verify
from finetune_trainer.s3 import S3Storage
from finetune_trainer.s3_client import Connection
from finetune_trainer.storage import Storage


def verify_published(uri: str, endpoint: str | None) -> int:
    """Print a line per file; returns 0 where every digest is as the manifest says, else 1."""
    count = 0

    def on_file(file: ManifestFile) -> None:
        nonlocal count
        count += 1
        sys.stdout.write(f"ok  {file.sha256}  {file.path}\n")

    problems = verify(uri, _storage(uri, endpoint), on_file)
    for problem in problems:
        sys.stderr.write(f"BAD {problem}\n")
    if not problems:
        sys.stdout.write(f"{uri}: {count} files are as the manifest says\n")
    return 1 if problems else 0


def _storage(uri: str, endpoint: str | None) -> Storage:
    store = S3Storage(Connection(StorageSpec(endpoint=endpoint)))
    return store if uri.startswith("s3://") else LocalStorage({uri: Path(uri)}, elsewhere=lambda: store)
