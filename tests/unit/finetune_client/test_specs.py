from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.spec import FineTuneJobSpec
from finetune_client import InvalidJob, WrongUse
from finetune_client.specs import build_manifest

SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "hf://owner/model"},
    "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
    "output": {"uri": "s3://bucket/out"},
}


def test_a_typed_spec_has_only_what_the_caller_has_set() -> None:
    spec = FineTuneJobSpec(
        objective="Chat",
        model={"uri": "hf://owner/model"},
        dataset={"train": {"uri": "s3://bucket/rows.jsonl"}},
        output={"uri": "s3://bucket/out"},
    )
    made = build_manifest("one", spec, {"team": "a"}, None)
    assert made["spec"] == SPEC
    assert made["metadata"] == {"name": "one", "labels": {"team": "a"}}
    assert (made["apiVersion"], made["kind"]) == ("finetune.dev/v1alpha1", "FineTuneJob")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objektive": "Chat"}, "spec.objektive is not a field\n  did you mean objective?"),
        ({"storage": {"secretKey": "hunter2"}}, "spec.storage.secretKey is not a field"),
        ({"output": {}}, "spec.output.uri is missing"),
        ({"backoffLimit": -1}, "spec.backoffLimit -1 must be at least 0"),
        ({"objective": "RLHF"}, "spec.rlhf"),
        ({"earlyStopping": {"patience": 3}}, "spec.earlyStopping"),
    ],
)
def test_a_fault_is_named_with_field_value_and_fix(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        build_manifest("one", SPEC | change, None, None)
    assert words in str(refused.value), str(refused.value)


@pytest.mark.parametrize("word", ["modle", "modek", "modl", "Modele"])
def test_a_required_field_that_is_missing_is_meant_before_a_nearer_word(word: str) -> None:
    """`mode` has more letters of `modle` in their order, but `model` is what the same answer reports as missing."""
    spec = {name: value for name, value in SPEC.items() if name != "model"} | {word: SPEC["model"]}
    with pytest.raises(InvalidJob) as refused:
        build_manifest("one", spec, None, None)
    assert "did you mean model?" in str(refused.value), str(refused.value)
    assert "spec.model is missing" in str(refused.value)


def test_a_field_that_is_there_is_not_meant_by_another_word() -> None:
    with pytest.raises(InvalidJob, match=r"did you mean mode\?"):
        build_manifest("one", SPEC | {"modes": "Train"}, None, None)


def test_several_faults_are_named_at_once() -> None:
    with pytest.raises(InvalidJob) as refused:
        build_manifest("one", SPEC | {"backoffLimit": -1, "objective": "Chatt"}, None, None)
    assert {line.split()[0] for line in str(refused.value).splitlines()} == {"spec.backoffLimit", "spec.objective"}


def test_a_manifest_of_the_cluster_can_be_created_again() -> None:
    made = build_manifest("one", SPEC, {"team": "a"}, None)
    of_the_server = {
        "uid": "u1",
        "resourceVersion": "7",
        "generation": 2,
        "creationTimestamp": "2026-03-01T12:00:00Z",
        "deletionTimestamp": "2026-03-01T12:00:00Z",
        "deletionGracePeriodSeconds": 0,
        "managedFields": [{"manager": "kubectl"}],
    }
    stored = made | {"status": {"phase": "Failed"}, "metadata": made["metadata"] | of_the_server}
    assert build_manifest(stored, None, None, None) == made


def test_a_file_without_one_job_or_with_broken_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    for text, words in (
        ("kind: ConfigMap\n", "has 0 objects of kind FineTuneJob"),
        ("a: [\n", r"job\.yaml:\d+: is not YAML"),
        ("kind: FineTuneJob\napiVersion: finetune.dev/v9\n", 'apiVersion "finetune.dev/v9" is not known'),
    ):
        path.write_text(text)
        with pytest.raises(InvalidJob, match=words):
            build_manifest(path, None, None, None)
    with pytest.raises(WrongUse, match="missing"):
        build_manifest(str(tmp_path / "missing.yaml"), None, None, None)


def test_a_name_alone_is_no_job() -> None:
    with pytest.raises(WrongUse, match="job one has no spec"):
        build_manifest("one", None, None, None)
    with pytest.raises(WrongUse, match="a manifest has its own spec"):
        build_manifest({}, SPEC, None, None)


@pytest.mark.parametrize("spec", ["good.yaml", Path("good.yaml")])
def test_a_path_is_not_the_spec_of_a_name(spec: Any) -> None:
    with pytest.raises(WrongUse, match="is a path, which has its own name") as caught:
        build_manifest("one", spec, None, None)
    assert caught.value.fix == "give the path alone"
    with pytest.raises(WrongUse, match="a manifest is not a spec") as caught:
        build_manifest("two", {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "spec": {}}, None, None)
    assert caught.value.fix == 'give its spec, manifest["spec"], or the manifest alone'
    with pytest.raises(WrongUse, match="a spec is not of type list"):
        build_manifest("one", [spec], None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "annotations", "words"),
    [
        ({"team": 7}, None, "metadata.labels.team 7 must be a text\n  put it in quotes"),
        ({"team": "a b"}, None, 'metadata.labels.team "a b" is not a valid value of a label'),
        ({"team a": "b"}, None, "metadata.labels.team a"),
        (None, {"ticket": True}, "metadata.annotations.ticket true must be a text"),
        (None, {"/ticket": "x"}, "is not a valid key of annotations"),
    ],
)
def test_labels_and_annotations_are_checked_before_the_api_server_is_asked(
    labels: Any, annotations: Any, words: str
) -> None:
    with pytest.raises(InvalidJob) as refused:
        build_manifest("one", SPEC, labels, annotations)
    assert words in str(refused.value), str(refused.value)
    written = {"labels": labels, "annotations": annotations, "name": "one"}
    manifest = build_manifest("one", SPEC, None, None) | {"metadata": {key: one for key, one in written.items() if one}}
    with pytest.raises(InvalidJob):
        build_manifest(manifest, None, None, None)


def test_labels_that_are_no_block_are_named(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    manifest = build_manifest("one", SPEC, None, None)
    path.write_text(yaml.safe_dump(manifest | {"metadata": {"name": "one", "labels": ["team"]}}))
    for more in (None, {"team": "a"}):
        with pytest.raises(InvalidJob, match=r"metadata\.labels must be a block of fields"):
            build_manifest(path, None, more, None)
    with pytest.raises(WrongUse, match="labels are not of type list"):
        build_manifest("one", SPEC, ["team"], None)  # type: ignore[arg-type]


def test_a_misspelt_part_of_the_metadata_is_named() -> None:
    manifest = build_manifest("one", SPEC, None, None) | {"metadata": {"name": "one", "label": {"team": "a"}}}
    with pytest.raises(InvalidJob, match=r"metadata\.label is not a field\n  did you mean labels\?"):
        build_manifest(manifest, None, None, None)
