import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from published_result import find_result_faults

from finetune_api.defaults import Facts, resolve
from finetune_api.handoff import Artifact, ExitCode, Manifest, Outcome, Report
from finetune_trainer.errors import ObjectMissing, Stopped, TrainerError
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.publishing.publish import adopt_result, publish
from finetune_trainer.storage.protocol import OnBytes, Store, sha256_file


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "finetune_report.md").write_text("# Report\n")
    (folder / "lineage.json").write_text("{}")
    return folder


def final_report(world: Any) -> Report:
    return Report(
        outcome=Outcome.PUBLISHED,
        reason="Published",
        message="done",
        job_uid=world.config.uid,
        config_sha256=world.config.config_sha256,
        resolved=resolve(world.config.spec, Facts(parameters=22, train_rows=80, validation_rows=20)),
        metrics={"eval_loss": 1.5},
    )


def put(world: Any, result: Path) -> Report:
    return publish(world.run, result, final_report(world))


def test_every_file_is_published_and_the_manifest_proves_it(world: Any, result: Path) -> None:
    report = put(world, result)
    assert report.artifacts is not None
    assert report.artifacts.manifest_sha256 == sha256_file(world.out / Artifact.MANIFEST)
    assert report.artifacts.adapter_uri == "s3://bucket/out/adapter"
    assert report.artifacts.report_uri == "s3://bucket/out/finetune_report.md"
    assert report.artifacts.merged_uri is None
    manifest = Manifest.model_validate_json((world.out / Artifact.MANIFEST).read_bytes())
    assert {file.path for file in manifest.files} == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "finetune_config.yaml",
        "finetune_report.md",
        "lineage.json",
    }
    assert report.artifacts.size_bytes == sum(file.size for file in manifest.files)
    assert find_result_faults("s3://bucket/out", world.storage) == []


def test_the_rows_of_preflight_belong_to_the_result(world: Any, result: Path) -> None:
    preflight(world.run)
    put(world, result)
    manifest = Manifest.model_validate_json((world.out / Artifact.MANIFEST).read_bytes())
    paths = {file.path for file in manifest.files}
    assert {"dataset/train.jsonl", "dataset/validation.jsonl", "dataset/summary.json", "rejected_rows.jsonl"} <= paths


def test_the_published_config_names_the_settings_in_use(world: Any, result: Path) -> None:
    put(world, result)
    config = yaml.safe_load((world.out / Artifact.CONFIG).read_text())
    assert config["spec"]["tuning"]["method"] == "QLoRA"
    assert config["spec"]["hyperparameters"]["learningRate"] == 2e-4


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "finetune_report.md", "finetune_config.yaml"])
def test_a_changed_file_is_found(world: Any, result: Path, name: str) -> None:
    put(world, result)
    path = world.out / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert find_result_faults("s3://bucket/out", world.storage) == [
        f"{name} does not match its SHA-256 in the manifest"
    ]


def test_a_missing_and_a_shortened_file_are_found(world: Any, result: Path) -> None:
    put(world, result)
    (world.out / "lineage.json").unlink()
    (world.out / "finetune_report.md").write_text("# Rep")
    problems = find_result_faults("s3://bucket/out", world.storage)
    assert problems == ["finetune_report.md has 5 bytes instead of 9", "lineage.json is missing"]


def test_a_file_that_is_removed_between_listing_and_reading_is_missing(
    world: Any, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(world, result)

    def removed(uri: str, _on_bytes: OnBytes | None = None) -> str:
        raise ObjectMissing(uri)

    monkeypatch.setattr(world.storage, "sha256", removed)
    assert "lineage.json is missing" in find_result_faults("s3://bucket/out", world.storage)


def test_a_prefix_without_a_manifest_is_no_result(world: Any) -> None:
    assert find_result_faults("s3://bucket/out", world.storage) == ["manifest.json is missing"]


def test_nothing_is_published_under_the_claim_of_another_job(world: Any, result: Path) -> None:
    put(world, result)
    before = {path: path.read_bytes() for path in world.out.rglob("*") if path.is_file()}
    with pytest.raises(TrainerError) as caught:
        put(world.with_config(name="other"), result)
    assert caught.value.code is ExitCode.OUTPUT_CONFLICT
    assert {path: path.read_bytes() for path in world.out.rglob("*") if path.is_file()} == before


def test_a_stop_leaves_the_prefix_without_a_manifest(world: Any, result: Path) -> None:
    world.stop.set()
    with pytest.raises(Stopped):
        put(world, result)
    assert not (world.out / Artifact.MANIFEST).exists()


class Flipping:
    """The storage with one fault: of an uploaded file of this name a bit arrives wrong."""

    def __init__(self, storage: Store, name: str) -> None:
        self._storage, self._name = storage, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._storage, attribute)

    def upload(self, path: Path, uri: str, on_bytes: OnBytes | None = None) -> None:
        if path.name == self._name:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            self._storage.put(uri, bytes(data))
        else:
            self._storage.upload(path, uri, on_bytes)


def test_a_file_that_arrives_damaged_fails_and_leaves_no_manifest_to_adopt(world: Any, result: Path) -> None:
    (result / "adapter" / "adapter_model.safetensors").write_bytes(b"w" * (17 * 1024 * 1024))
    sound, world.storage = world.storage, Flipping(world.storage, "adapter_model.safetensors")
    with pytest.raises(TrainerError, match=r"uploaded files differ: adapter/adapter_model\.safetensors") as caught:
        put(world, result)
    assert caught.value.code is ExitCode.STORAGE_UNAVAILABLE
    assert not (world.out / Artifact.MANIFEST).exists()
    assert adopt_result(world.config, sound, Outcome.PUBLISHED) is None


def test_a_manifest_that_does_not_read_back_is_no_success(world: Any, result: Path) -> None:
    class Forgetting(Flipping):
        def put_if_absent(self, uri: str, data: bytes) -> bool:
            return self._storage.put_if_absent(uri, b"{}" if uri.endswith(Artifact.MANIFEST) else data)

    world.storage = Forgetting(world.storage, "none")
    with pytest.raises(TrainerError, match="differs from the manifest that was written") as caught:
        put(world, result)
    assert caught.value.code is ExitCode.STORAGE_UNAVAILABLE


def test_a_whole_result_of_the_same_job_is_adopted_and_not_overwritten(world: Any, result: Path) -> None:
    first = put(world, result)
    before = {path: path.read_bytes() for path in world.out.rglob("*") if path.is_file()}
    (result / "finetune_report.md").write_text("# Another report\n")
    second = put(world, result)
    assert {path: path.read_bytes() for path in world.out.rglob("*") if path.is_file()} == before
    assert (second.outcome, second.artifacts) == (Outcome.PUBLISHED, first.artifacts)


def test_a_twin_that_was_faster_with_its_manifest_wins(world: Any, result: Path) -> None:
    class Twin(Flipping):
        def put_if_absent(self, uri: str, data: bytes) -> bool:
            if uri.endswith(Artifact.MANIFEST):
                self._storage.put(uri, data.replace(b'"done"', b'"the twin"'))
            return self._storage.put_if_absent(uri, data)

    world.storage = Twin(world.storage, "none")
    report = put(world, result)
    assert report.message == "the twin"
    assert report.artifacts is not None
    assert report.artifacts.manifest_sha256 == sha256_file(world.out / Artifact.MANIFEST)


def test_an_earlier_result_that_is_no_longer_whole_is_made_again(world: Any, result: Path) -> None:
    put(world, result)
    (world.out / "adapter" / "adapter_model.safetensors").unlink()
    (result / "finetune_report.md").write_text("# Better report\n")
    report = put(world, result)
    assert report.artifacts is not None
    assert report.artifacts.manifest_sha256 == sha256_file(world.out / Artifact.MANIFEST)
    assert find_result_faults("s3://bucket/out", world.storage) == []
    assert (world.out / "finetune_report.md").read_text() == "# Better report\n"


def test_a_large_file_that_changed_is_not_adopted(world: Any, result: Path) -> None:
    weights = Path("adapter") / "adapter_model.safetensors"
    (result / weights).write_bytes(b"w" * (17 * 1024 * 1024))
    put(world, result)
    (world.out / weights).write_bytes(b"x" * (17 * 1024 * 1024))
    assert adopt_result(world.config, world.storage, Outcome.ADOPTED) is None


def test_a_complete_result_is_adopted_by_the_job_created_again(world: Any, result: Path) -> None:
    published = put(world, result)
    again = preflight(world.with_config(uid="uid-2").run)
    assert (again.outcome, again.job_uid) == (Outcome.ADOPTED, "uid-2")
    assert again.artifacts == published.artifacts
    assert again.metrics == published.metrics


def test_a_result_with_a_lost_file_is_not_adopted(world: Any, result: Path) -> None:
    put(world, result)
    (world.out / "adapter" / "adapter_model.safetensors").unlink()
    assert adopt_result(world.config, world.storage, Outcome.ADOPTED) is None


def test_a_result_of_another_spec_is_not_adopted(world: Any, result: Path) -> None:
    put(world, result)
    world.with_config({"hyperparameters": {"maxSteps": 3}})
    assert adopt_result(world.config, world.storage, Outcome.ADOPTED) is None


def test_a_manifest_that_is_garbage_is_a_problem_and_not_adopted(world: Any, result: Path) -> None:
    put(world, result)
    (world.out / Artifact.MANIFEST).write_text(json.dumps({"files": "no"}))
    assert find_result_faults("s3://bucket/out", world.storage) == ["manifest.json cannot be read"]
    assert adopt_result(world.config, world.storage, Outcome.ADOPTED) is None
