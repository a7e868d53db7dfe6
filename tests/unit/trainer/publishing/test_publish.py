import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from published_result import find_result_faults

from finetune_api.defaults import Facts, resolve
from finetune_api.handoff import Artifact, ExitCode, Manifest, ManifestFile, Outcome, Owner, Report
from finetune_api.status import Artifacts, KeptCheckpoint
from finetune_trainer.errors import ObjectMissing, Stopped, StorageDenied, TrainerError
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.publishing.claim import claim_prefix
from finetune_trainer.publishing.publish import (
    add_manifest_digest,
    adopt_result,
    build_artifacts,
    find_file_faults,
    publish,
)
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


def test_kept_checkpoints_are_part_of_the_manifest_and_an_adopted_result_names_them(world: Any, result: Path) -> None:
    folder = result / "kept-checkpoints" / "step-000024"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"other weights")
    kept = KeptCheckpoint(step=24, epoch=1.5, eval_loss=1.25, uri="s3://bucket/out/kept-checkpoints/step-000024")
    report = final_report(world).model_copy(update={"artifacts": Artifacts(kept_checkpoints=[kept])})
    published = publish(world.run, result, report)
    assert published.artifacts
    assert published.artifacts.kept_checkpoints == [kept]
    manifest = Manifest.model_validate_json((world.out / Artifact.MANIFEST).read_bytes())
    assert "kept-checkpoints/step-000024/adapter_model.safetensors" in {file.path for file in manifest.files}
    adopted = adopt_result(world.config, world.storage, Outcome.PUBLISHED)
    assert adopted
    assert adopted.artifacts == published.artifacts
    (world.out / "kept-checkpoints" / "step-000024" / "adapter_model.safetensors").unlink()
    assert adopt_result(world.config, world.storage, Outcome.PUBLISHED) is None


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


def test_a_prefix_without_a_manifest_is_not_a_result(world: Any) -> None:
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


def test_a_stop_after_the_last_file_was_verified_leaves_the_prefix_without_a_manifest(
    world: Any, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last(uri: str, on_bytes: OnBytes | None = None) -> str:
        found = sha256(uri, on_bytes)
        if uri.endswith("lineage.json"):
            world.stop.set()
        return found

    sha256 = world.storage.sha256
    monkeypatch.setattr(world.storage, "sha256", last)
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


def test_a_manifest_that_does_not_read_back_is_not_a_success(world: Any, result: Path) -> None:
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


def test_a_prefix_without_a_manifest_has_nothing_to_adopt_and_nothing_to_warn_of(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert adopt_result(world.config, world.storage, Outcome.ADOPTED) is None
    assert caplog.text == ""


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


def test_the_manifest_has_the_names_of_the_api_is_indented_and_leaves_out_what_is_unknown(
    world: Any, result: Path
) -> None:
    put(world, result)
    text = (world.out / Artifact.MANIFEST).read_text()
    assert text.startswith('{\n  "')
    assert '"configSHA256"' in text
    assert "null" not in text


def test_publishing_is_a_stage_of_the_run(world: Any, result: Path) -> None:
    put(world, result)
    assert world.reporter.snapshot().progress.stage == "Publishing"


def test_a_config_file_in_the_result_is_published_as_it_is(world: Any, result: Path) -> None:
    (result / Artifact.CONFIG).write_text("mine\n")
    put(world, result)
    assert (world.out / Artifact.CONFIG).read_text() == "mine\n"


def test_a_run_without_settings_publishes_no_config_file(world: Any, result: Path) -> None:
    report = publish(world.run, result, final_report(world).model_copy(update={"resolved": None}))
    assert report.artifacts is not None
    assert report.artifacts.config_uri is None
    assert not (world.out / Artifact.CONFIG).exists()


def test_artifacts_are_named_by_the_files_that_are_there() -> None:
    def file(path: str, digest: str = "a") -> ManifestFile:
        return ManifestFile(path=path, size=2, sha256=digest * 64)

    merged = build_artifacts("s3://b/o", [file("merged/model.safetensors"), file("lineage.json", "b"), file("adapter")])
    assert merged.merged_uri == "s3://b/o/merged"
    assert merged.adapter_uri is None
    assert (merged.lineage_uri, merged.lineage_sha256) == ("s3://b/o/lineage.json", "b" * 64)
    assert (merged.config_uri, merged.report_uri) == (None, None)
    assert (merged.manifest_uri, merged.size_bytes) == ("s3://b/o/manifest.json", 6)
    nothing = build_artifacts("s3://b/o", [])
    assert (nothing.lineage_uri, nothing.lineage_sha256, nothing.size_bytes) == (None, None, 0)


def test_a_report_without_artifacts_gets_the_digest_of_its_manifest_too(world: Any) -> None:
    report = add_manifest_digest(final_report(world), b"")
    assert report.artifacts is not None
    assert str(report.artifacts.manifest_sha256).startswith("e3b0c44298fc1c14")


def test_each_good_file_is_handed_on_and_no_other(world: Any, result: Path) -> None:
    put(world, result)
    (world.out / "lineage.json").write_text("[]")
    manifest = Manifest.model_validate_json((world.out / Artifact.MANIFEST).read_bytes())
    good: list[ManifestFile] = []
    faults = find_file_faults("s3://bucket/out", manifest.files, world.storage, on_file=good.append)
    assert faults == ["lineage.json does not match its SHA-256 in the manifest"]
    assert good == [file for file in manifest.files if file.path != "lineage.json"]


def test_at_most_three_damaged_files_are_named(world: Any, result: Path) -> None:
    for number in range(5):
        (result / f"part-{number}").write_bytes(b"part")

    class Losing(Flipping):
        def upload(self, path: Path, uri: str, on_bytes: OnBytes | None = None) -> None:
            if not path.name.startswith("part-"):
                self._storage.upload(path, uri, on_bytes)

    world.storage = Losing(world.storage, "none")
    with pytest.raises(TrainerError, match=r"part-0 is missing; part-1 is missing; part-2 is missing$"):
        put(world, result)


def test_an_adopted_result_that_did_not_meet_its_gate_is_still_a_failure(world: Any, result: Path) -> None:
    publish(world.run, result, final_report(world).model_copy(update={"outcome": Outcome.GATE_NOT_MET}))
    adopted = adopt_result(world.config, world.storage, Outcome.ADOPTED)
    assert adopted is not None
    assert (adopted.outcome, adopted.reason) == (Outcome.GATE_NOT_MET, "GateNotMet")


@pytest.mark.parametrize(("name", "namespace"), [("another", "team"), ("job", "another")])
def test_a_manifest_of_another_job_is_not_adopted(world: Any, result: Path, name: str, namespace: str) -> None:
    put(world, result)
    other = world.config.model_copy(update={"name": name, "namespace": namespace})
    assert adopt_result(other, world.storage, Outcome.ADOPTED) is None


class LateManifest(Flipping):
    """The storage, but an unusable manifest appears just before the run's own, after the files were verified."""

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        if uri.endswith(Artifact.MANIFEST):
            self._storage.put(uri, b"{}")
            self.change()
        return self._storage.put_if_absent(uri, data)

    def change(self) -> None:
        """Change something else at the same moment."""


def test_an_unusable_manifest_is_replaced(world: Any, result: Path) -> None:
    world.storage = LateManifest(world.storage, "none")
    report = put(world, result)
    assert report.artifacts is not None
    assert report.artifacts.manifest_sha256 == sha256_file(world.out / Artifact.MANIFEST)


def test_an_unusable_manifest_is_not_replaced_after_a_file_changed(world: Any, result: Path) -> None:
    class Changed(LateManifest):
        def change(self) -> None:
            self._storage.put("s3://bucket/out/lineage.json", b"[]")

    world.storage = Changed(world.storage, "none")
    with pytest.raises(TrainerError, match=r"the uploaded files differ: lineage\.json does not match"):
        put(world, result)
    assert (world.out / Artifact.MANIFEST).read_bytes() == b"{}"


def test_an_unusable_manifest_is_not_replaced_after_the_prefix_was_taken(world: Any, result: Path) -> None:
    class Taken(LateManifest):
        def change(self) -> None:
            owner = Owner(namespace="team", name="other", uid="u", config_sha256="c")
            self._storage.put("s3://bucket/out/owner.json", owner.model_dump_json(by_alias=True).encode())

    world.storage = Taken(world.storage, "none")
    with pytest.raises(TrainerError, match="belongs to the FineTuneJob team/other"):
        put(world, result)
    assert (world.out / Artifact.MANIFEST).read_bytes() == b"{}"


STALE = ("merged/model.safetensors", "gguf/model-Q8_0.gguf", "kept-checkpoints/step-000024/a", "withheld.safetensors")


def upload_earlier(world: Any, *names: str) -> None:
    for name in names:
        world.storage.put(f"s3://bucket/out/{name}", b"of an earlier attempt")


def test_what_an_earlier_attempt_uploaded_is_removed_before_the_manifest_is_written(world: Any, result: Path) -> None:
    others = (
        "checkpoints/step-000002/state",
        "dataset/old.jsonl",
        "merged-notes.txt",
        "refused/uid/rejected_rows.jsonl",
    )
    claim_prefix(world.config, world.storage)
    upload_earlier(world, *STALE, "adapter/other.bin", *others)
    world.storage.put("s3://bucket/out-2/merged/model.safetensors", b"of another job")

    class Noting(Flipping):
        def put_if_absent(self, uri: str, data: bytes) -> bool:
            if uri.endswith(Artifact.MANIFEST):
                self.seen = {entry.key for entry in self._storage.list("s3://bucket/out")}
            return self._storage.put_if_absent(uri, data)

    world.storage = Noting(world.storage, "none")
    report = put(world, result)
    assert world.storage.seen.isdisjoint({*STALE, "adapter/other.bin"})
    assert {*others, "owner.json", "adapter/adapter_config.json"} <= world.storage.seen
    assert (world.bucket / "out-2" / "merged" / "model.safetensors").exists()
    assert report.message == "done"


def test_the_result_of_another_job_below_the_prefix_is_not_removed(world: Any, result: Path) -> None:
    claim_prefix(world.config, world.storage)
    inner = ("merged/of-another/owner.json", "merged/of-another/manifest.json", "merged/of-another/adapter/weights")
    upload_earlier(world, *inner, "merged/model.safetensors")
    put(world, result)
    assert [(world.out / name).exists() for name in (*inner, "merged/model.safetensors")] == [True, True, True, False]


def test_files_that_storage_refuses_to_delete_are_named_and_the_result_is_published(
    world: Any, result: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Denying(Flipping):
        def remove(self, uri: str) -> None:
            raise StorageDenied(f"{uri}: access is denied")

    claim_prefix(world.config, world.storage)
    upload_earlier(world, "merged/config.json", "merged/model.safetensors")
    world.storage = Denying(world.storage, "none")
    report = put(world, result)
    told = "in the folders of the result, but not part of it: merged/config.json, merged/model.safetensors; "
    assert report.message == f"done; {told}delete them from s3://bucket/out"
    assert told in caplog.text
    assert "access is denied" in caplog.text
    assert report.artifacts
    assert report.artifacts.merged_uri is None
    assert find_result_faults("s3://bucket/out", world.storage) == []


def test_nothing_of_a_result_that_another_run_completed_meanwhile_is_removed(world: Any, result: Path) -> None:
    class Faster(Flipping):
        def sha256(self, uri: str, on_bytes: OnBytes | None = None) -> str:
            if uri.endswith("lineage.json") and not (world.out / Artifact.MANIFEST).exists():
                self._storage.put("s3://bucket/out/merged/model.safetensors", b"merged")
                text = b"merged"
                merged = ManifestFile(path="merged/model.safetensors", size=6, sha256=hashlib.sha256(text).hexdigest())
                manifest = Manifest(**world.config.identity(), files=[merged], result=final_report(world))
                self._storage.put("s3://bucket/out/manifest.json", manifest.model_dump_json(by_alias=True).encode())
            return str(self._storage.sha256(uri, on_bytes))

        def remove(self, uri: str) -> None:
            raise AssertionError(uri)

    world.storage = Faster(world.storage, "none")
    report = put(world, result)
    assert (world.out / "merged" / "model.safetensors").exists()
    assert report.artifacts
    assert report.artifacts.manifest_sha256 == sha256_file(world.out / Artifact.MANIFEST)
