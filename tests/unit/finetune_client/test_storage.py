"""What is downloaded of a result, and what is refused; a real S3 server is in `integration/trainer`."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import Artifact
from finetune_api.status import Artifacts
from finetune_client.errors import FineTuneError, NotFound
from finetune_client.storage import Storage

RESULT = {"outcome": "Published", "reason": "Succeeded", "message": "", "jobUID": "u", "configSHA256": "ab" * 32}
MANIFEST: dict[str, Any] = {"namespace": "a", "name": "one", "uid": "u", "configSHA256": "ab" * 32, "result": RESULT}


class Store:
    """Objects by key, as a client of boto3 returns them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        entries = [
            {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        ]
        manifest = json.dumps(MANIFEST | {"files": entries}).encode()
        self.objects = {f"out/{name}": data for name, data in {**files, Artifact.MANIFEST: manifest}.items()}
        self.digest = hashlib.sha256(manifest).hexdigest()

    def client(self, *_: object, **__: object) -> "Store":
        return self

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - names of boto3
        assert Bucket == "b"
        return {"Body": io.BytesIO(self.objects[Key])}


def opened(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> tuple[Store, Storage]:
    boto3 = pytest.importorskip("boto3")
    store = Store(files)
    monkeypatch.setattr(boto3, "Session", lambda: store)
    return store, Storage(Artifacts(uri="s3://b/out", manifest_sha256=store.digest), "http://minio:9000")


def test_a_folder_a_file_or_all_of_a_result_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {"adapter/a.json": b"{}", "adapter/deep/b": b"b", "adapter.txt": b"other", "report.html": b"<p>"}
    _, storage = opened(monkeypatch, files)
    for what, names in (("adapter", 2), ("report.html", 1), ("", 4)):
        paths = storage.download(tmp_path / str(names), what)
        assert len(paths) == names
        assert all(path.read_bytes() == files[str(path.relative_to(tmp_path / str(names)))] for path in paths)
    with pytest.raises(NotFound, match=r"(?s)no merged.*it has adapter/a\.json"):
        storage.download(tmp_path, "merged")


def test_a_changed_file_never_gets_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store, storage = opened(monkeypatch, {"adapter/a.json": b"{}"})
    store.objects["out/adapter/a.json"] = b"[]"
    with pytest.raises(FineTuneError, match="its SHA-256 differs"):
        storage.download(tmp_path, "adapter")
    assert [path.name for path in tmp_path.rglob("*")] == ["adapter"]


def test_a_download_that_breaks_leaves_no_part_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store, storage = opened(monkeypatch, {"adapter/a.json": b"{}"})
    from botocore.exceptions import ReadTimeoutError

    for broken, raised in (
        (ReadTimeoutError(endpoint_url="u"), FineTuneError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):

        class Body(io.BytesIO):
            def read(self, size: int | None = -1, /, broken: BaseException = broken) -> bytes:
                if found := super().read(1):
                    return found
                raise broken

        monkeypatch.setattr(store, "get_object", lambda body=Body, **_: {"Body": body(b"{")})
        with pytest.raises(raised):
            storage.download(tmp_path, "adapter")
        assert [path.name for path in tmp_path.rglob("*")] == ["adapter"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "adapter/../../outside"])
def test_a_manifest_cannot_write_outside_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    _, storage = opened(monkeypatch, {name: b"x"})
    with pytest.raises(FineTuneError, match="which is outside"):
        storage.download(tmp_path / "folder")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("taken", ["out", "out/adapter/a.json/x"])
def test_a_place_that_cannot_be_written_is_an_error_with_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taken: str
) -> None:
    _, storage = opened(monkeypatch, {"adapter/a.json": b"{}"})
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).write_text("mine")
    with pytest.raises(FineTuneError, match=r"out/adapter/a\.json cannot be written: (Not|Is) a directory"):
        storage.download(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*.part")] == []
