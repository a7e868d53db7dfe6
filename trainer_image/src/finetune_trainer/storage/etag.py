"""Compare a local file with the ETag of an S3 object: an MD5, or one over the MD5s of the parts of its upload."""

import hashlib
import re
from functools import partial
from pathlib import Path

from finetune_trainer.storage.protocol import CHUNK_BYTES

MIB = 1024 * 1024
PART_MIB = (5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 200, 256, 500, 512, 1024)
"""Sizes of parts that common clients upload with: 8 MiB of boto3 and the AWS CLI, 16 of this trainer and MinIO's
client, 5 of rclone, 15 of s3cmd."""
_md5 = partial(hashlib.md5, usedforsecurity=False)
_ETAG = re.compile(r"([0-9a-f]{32})(?:-([0-9]{1,5}))?")


def is_digest(etag: str) -> bool:
    """Return whether an ETag has the form of a digest; one of an object that is encrypted with SSE-KMS has it too."""
    return _ETAG.fullmatch(etag.strip('"')) is not None


def matches_etag(path: Path, etag: str) -> bool:
    """Return whether the content has this ETag; False if the ETag is no digest (SSE-KMS), or of unusual parts."""
    found = _ETAG.fullmatch(etag.strip('"'))
    if not found:
        return False
    digest, parts = found.groups()
    if parts is None:
        with path.open("rb") as file:
            return hashlib.file_digest(file, _md5).hexdigest() == digest
    size, count = path.stat().st_size, int(parts)
    return any(_of_parts(path, part * MIB) == digest for part in PART_MIB if -(-size // (part * MIB)) == count)


def _of_parts(path: Path, part: int) -> str:
    """Return the MD5 over the MD5s of parts of that many bytes."""
    whole = _md5()
    with path.open("rb") as file:
        for _ in range(0, path.stat().st_size, part):
            one, left = _md5(), part
            while block := file.read(min(left, CHUNK_BYTES)):
                one.update(block)
                left -= len(block)
            whole.update(one.digest())
    return whole.hexdigest()
