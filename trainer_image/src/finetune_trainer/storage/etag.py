"""Compare a local file with the ETag of an S3 object: an MD5, or one over the MD5s of the parts of its upload."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from finetune_trainer.storage.protocol import CHUNK_BYTES, OnBytes

MIB = 1024 * 1024
PART_MIB = (5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 200, 256, 500, 512, 1024)
"""Sizes of parts that common clients upload with: 8 MiB of boto3 and the AWS CLI, 16 of this trainer and MinIO's
client, 5 of rclone, 15 of s3cmd."""
_ETAG = re.compile(r"([0-9a-f]{32})(?:-([0-9]{1,5}))?")


def is_digest(etag: str) -> bool:
    """Return whether an ETag has the form of a digest; one of an object that is encrypted with SSE-KMS has it too."""
    return _ETAG.fullmatch(etag.strip('"')) is not None


def matches_etag(path: Path, etag: str, on_bytes: OnBytes | None = None) -> bool:
    """Return whether the content has this ETag; False if the ETag is no digest (SSE-KMS), or of unusual parts."""
    found = _ETAG.fullmatch(etag.strip('"'))
    if not found:
        return False
    digest, parts = found.groups()
    if parts is None:
        return _md5(_blocks(path, on_bytes)) == digest
    size, count = path.stat().st_size, int(parts)
    return any(
        _of_parts(path, part * MIB, on_bytes) == digest for part in PART_MIB if -(-size // (part * MIB)) == count
    )


def _of_parts(path: Path, part: int, on_bytes: OnBytes | None) -> str:
    """Return the MD5 over the MD5s of parts of that many bytes."""
    whole = hashlib.md5(usedforsecurity=False)
    digest, filled = hashlib.md5(usedforsecurity=False), 0
    for block in _blocks(path, on_bytes):
        while block:
            taken = block[: part - filled]
            digest.update(taken)
            filled += len(taken)
            block = block[len(taken) :]  # noqa: PLW2901
            if filled == part:
                whole.update(digest.digest())
                digest, filled = hashlib.md5(usedforsecurity=False), 0
    if filled:
        whole.update(digest.digest())
    return whole.hexdigest()


def _md5(blocks: Iterator[bytes]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path, on_bytes: OnBytes | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            if on_bytes:
                on_bytes(0)
            yield block
