"""The ETag of an S3 object as a proof of its content."""

import hashlib
from pathlib import Path

import pytest

from finetune_trainer.storage.etag import MIB, is_digest, matches_etag


def etag_of(content: bytes, part: int) -> str:
    parts = [hashlib.md5(content[at : at + part]).digest() for at in range(0, len(content), part)]
    return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(251)) * (17 * MIB // 251))
    return path


def test_an_upload_in_one_piece_has_the_md5(file: Path) -> None:
    assert matches_etag(file, hashlib.md5(file.read_bytes()).hexdigest())
    assert matches_etag(file, f'"{hashlib.md5(file.read_bytes()).hexdigest()}"')
    assert not matches_etag(file, hashlib.md5(b"other").hexdigest())


@pytest.mark.parametrize("part", [5 * MIB, 8 * MIB, 16 * MIB, 64 * MIB])
def test_an_upload_in_parts_has_the_md5_of_md5s(file: Path, part: int) -> None:
    tag = etag_of(file.read_bytes(), part)
    assert matches_etag(file, tag)
    file.write_bytes(b"\xff" + file.read_bytes()[1:])
    assert not matches_etag(file, tag)


def test_parts_of_an_unknown_size_prove_nothing(file: Path) -> None:
    assert not matches_etag(file, etag_of(file.read_bytes(), 7 * MIB))


@pytest.mark.parametrize("etag", ["", "opaque", "0" * 31, f"{'0' * 32}-", f"{'0' * 32}-123456"])
def test_what_is_no_digest_matches_nothing(file: Path, etag: str) -> None:
    assert not is_digest(etag)
    assert not matches_etag(file, etag)
