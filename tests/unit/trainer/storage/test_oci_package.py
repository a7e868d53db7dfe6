"""Images and ModelPack artifacts of files: what is in them, and that the same files give the same bytes."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from finetune_api.output import PackageFormat
from finetune_trainer.storage.oci.package import Package, build_package, group_layers, model_pack_type, tar_pieces
from finetune_trainer.storage.protocol import CHUNK_BYTES

FILES = {
    "README.md": b"# Helpdesk\n",
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"w" * 100_000,
    "nested/deep/notes.txt": b"",
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in reversed(FILES)}


def build(files: dict[str, Path], kind: str = "Image") -> Package:
    return build_package(PackageFormat(kind), files, "helpdesk", {"finetune.dev/job": "team/helpdesk"}, lambda _: None)


def blob(package: Package, digest: str) -> bytes:
    content = b"".join(next(one for one in package.blobs if one.digest == digest).chunks())
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
    return content


def parsed(package: Package) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = json.loads(package.manifest)
    return manifest, json.loads(blob(package, manifest["config"]["digest"]))


def test_an_image_has_the_files_below_models_in_tar_layers_that_its_config_lists(files: dict[str, Path]) -> None:
    package = build(files)
    manifest, config = parsed(package)
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.oci.image.layer.v1.tar"}
    assert "artifactType" not in manifest  # CRI-O would mount the tar files themselves
    assert config["rootfs"] == {"type": "layers", "diff_ids": [layer["digest"] for layer in manifest["layers"]]}
    assert (config["os"], len(config["history"])) == ("linux", len(manifest["layers"]))
    found: dict[str, bytes] = {}
    for layer in manifest["layers"]:
        content = blob(package, layer["digest"])
        assert len(content) == layer["size"]
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in tar:
                assert (member.uid, member.gid, member.mtime) == (0, 0, 0)
                assert member.mode == (0o755 if member.isdir() else 0o644)
                file = tar.extractfile(member)
                found |= {member.name: file.read()} if file else {}
            names = tar.getnames()
        assert names[0] == "models"
    assert found == {f"models/{name}": content for name, content in FILES.items()}
    assert manifest["annotations"]["finetune.dev/job"] == "team/helpdesk"


def test_a_model_pack_has_each_file_as_it_is_under_its_name(files: dict[str, Path]) -> None:
    package = build(files, "ModelPack")
    manifest, config = parsed(package)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    found = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in manifest["layers"]}
    assert {name: blob(package, layer["digest"]) for name, layer in found.items()} == FILES
    assert all(layer["annotations"]["org.opencontainers.image.title"] == name for name, layer in found.items())
    assert found["README.md"]["mediaType"] == "application/vnd.cncf.model.doc.v1.raw"
    assert config == {
        "descriptor": {"name": "helpdesk"},
        "config": {"format": "safetensors"},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]},
    }


@pytest.mark.parametrize("kind", list(PackageFormat))
def test_the_same_files_give_the_same_digest_whatever_their_times_and_rights(files: dict[str, Path], kind: str) -> None:
    before = build(files, kind).digest
    for path in files.values():
        path.chmod(0o600)
        os.utime(path, (1, 1))
    assert build(dict(reversed(files.items())), kind).digest == before
    files["README.md"].write_text("# Another\n")
    assert build(files, kind).digest != before


@pytest.mark.parametrize("kind", list(PackageFormat))
def test_a_large_file_is_read_in_small_parts(files: dict[str, Path], kind: str) -> None:
    files["adapter_model.safetensors"].write_bytes(b"w" * 3 * CHUNK_BYTES)
    assert max(len(part) for one in build(files, kind).blobs for part in one.chunks()) <= CHUNK_BYTES


def test_another_card_leaves_the_layer_of_the_weights_as_it_is(files: dict[str, Path]) -> None:
    before = json.loads(build(files).manifest)["layers"]
    files["README.md"].write_text("# Another\n")
    after = json.loads(build(files).manifest)["layers"]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_weights_are_layers_of_their_own_as_long_as_a_node_can_mount_them() -> None:
    assert group_layers(["a.json", "b.safetensors", "c.safetensors"]) == [
        ["b.safetensors"], ["c.safetensors"], ["a.json"],
    ]  # fmt: skip
    assert group_layers(["a.json"]) == [["a.json"]]
    assert group_layers(["model-Q8_0.gguf"]) == [["model-Q8_0.gguf"]]
    many = [f"model-{number:05}.safetensors" for number in range(191)]
    groups = group_layers([*many, "config.json"])
    assert len(groups) <= 101
    assert [name for group in groups for name in group] == [*many, "config.json"]


@pytest.mark.parametrize("size", [0, 511, 512, 513])
def test_a_tar_layer_is_read_by_its_sizes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"w" * size)
    built = build({"model.safetensors": path})
    layer = json.loads(built.manifest)["layers"][0]
    with tarfile.open(fileobj=io.BytesIO(blob(built, layer["digest"]))) as tar:
        assert tar.getmember("models/model.safetensors").size == size


def test_a_file_above_8_gib_has_its_size_in_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(9 * 1024**3)
    pieces = list(tar_pieces({"model.safetensors": path}))
    header = b"".join(one for one in pieces[: pieces.index(path)] if isinstance(one, bytes))
    with tarfile.open(fileobj=io.BytesIO(header)) as tar:
        found = [member.size for member in (tar.next(), tar.next()) if member]
    assert found == [0, 9 * 1024**3]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model-Q8_0.gguf", "weight"),
        ("tokenizer.json", "weight.config"),
        ("Modelfile", "weight.config"),
        ("LICENSE.txt", "doc"),
    ],
)
def test_files_of_a_model_pack_have_the_type_of_their_name(name: str, kind: str) -> None:
    assert model_pack_type(name) == f"application/vnd.cncf.model.{kind}.v1.raw"
