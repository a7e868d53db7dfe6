"""Model and rows in a PersistentVolumeClaim: no store but that of the result."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rows import colour_rows, jsonl
from user import BUCKET, Bench, first_node, kubectl, local_volume, wait_for

pytestmark = pytest.mark.nightly
WEIGHTS = "adapter/adapter_model.safetensors"
QUESTIONS = jsonl(
    {"question": f"What is {number} + 1?", "choices": [str(number), str(number + 1)], "answer": 1}
    for number in range(20)
)
SECRET = "/etc/finetune/credentials/AWS_SECRET_ACCESS_KEY"


@pytest.fixture(scope="module")
def claim(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the claim `shared`, whose files every user may read, as an administrator fills it."""
    folder = tmp_path_factory.mktemp("shared")
    bench.download(f"s3://{BUCKET}/tiny-model", folder / "models" / "tiny")
    (folder / "rows").mkdir()
    (folder / "rows" / "colours.jsonl").write_text(jsonl(colour_rows(300)))
    (folder / "questions.jsonl").write_text(QUESTIONS)
    (folder / "rows" / "secret.jsonl").symlink_to(SECRET)
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    volume = f"shared-{bench.namespace}"
    wanted: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared", "namespace": bench.namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "volumeName": volume,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    kubectl(
        "apply", "-f", "-", stdin=yaml.safe_dump_all([local_volume(volume, "", first_node(), folder, "1Gi"), wanted])
    )
    yield folder
    kubectl("delete", "pvc", "shared", "-n", bench.namespace, "--wait=false")
    kubectl("delete", "pv", volume, "--wait=false")


def rows(path: str) -> dict[str, Any]:
    return {"train": {"uri": f"pvc://shared/{path}"}, "validationSplitPercent": 10}


def test_a_job_with_model_and_rows_in_a_claim_has_the_weights_of_one_with_both_in_storage(
    bench: Bench, claim: Path
) -> None:
    before = {path: path.lstat().st_mtime_ns for path in claim.rglob("*")}
    questions = {"s3": bench.put("questions.jsonl", QUESTIONS), "pvc": "pvc://shared/questions.jsonl"}
    asked = {scheme: {"ability": {"uri": uri}} for scheme, uri in questions.items()}
    stored = bench.apply("stored", evaluation=asked["s3"])
    model = {"uri": "pvc://shared/models/tiny"}
    claimed = bench.apply("claimed", model=model, dataset=rows("rows/"), evaluation=asked["pvc"])
    for job in (stored, claimed):
        job.wait("Complete")
    assert bench.read(bench.uri(f"out/claimed/{WEIGHTS}")) == bench.read(bench.uri(f"out/stored/{WEIGHTS}"))
    assert claimed.status()["dataset"]["rows"] == 300  # without the link to the Secret
    assert claimed.status()["evaluation"]["ability"] == stored.status()["evaluation"]["ability"]
    assert claimed.status()["evaluation"]["ability"]["questions"] == 20
    assert {path: path.lstat().st_mtime_ns for path in claim.rglob("*")} == before
    (mount,) = [one for one in claimed.pods()[0].spec.containers[0].volume_mounts if one.mount_path == "/claims/shared"]
    assert mount.read_only


def test_a_link_to_a_secret_of_the_pod_is_refused_and_none_of_it_is_shown(bench: Bench, claim: Path) -> None:
    assert (claim / "rows" / "secret.jsonl").is_symlink()
    job = bench.apply("curious", dataset=rows("rows/secret.jsonl"))
    status = job.wait("Failed")
    assert "leads out of its claim" in status["message"]


def test_a_missing_claim_is_named_while_the_pod_waits(bench: Bench) -> None:
    job = bench.apply("homeless", model={"uri": "pvc://nowhere/tiny"})
    message = wait_for(
        "the missing claim in the message",
        lambda: "nowhere" in (found := job.status().get("message", "")) and found,
        state=job.status,
    )
    assert 'persistentvolumeclaim "nowhere" not found' in message
    job.delete()
