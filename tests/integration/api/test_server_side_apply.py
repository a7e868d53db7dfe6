"""Two managers of one job: server-side apply keeps what each of them has applied."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api import names

SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "s3://models/base"},
    "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
    "output": {"uri": "s3://models/out"},
}
Apply = Callable[[str, dict[str, Any]], dict[str, Any]]


@pytest.fixture
def apply(kubectl: Callable[..., str], tmp_path: Path, request: pytest.FixtureRequest) -> Apply:
    name = request.node.name.replace("_", "-")[:60].strip("-")

    def call(manager: str, spec: dict[str, Any]) -> dict[str, Any]:
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": spec}
        path = tmp_path / f"{manager}.json"
        path.write_text(json.dumps(body))
        options = ("--server-side", f"--field-manager={manager}", "--force-conflicts", "-o", "json")
        made: dict[str, Any] = json.loads(kubectl("apply", *options, "-f", str(path)))["spec"]
        return made

    return call


def named(*entries: str) -> list[dict[str, str]]:
    return [{"name": one} for one in entries]


def test_lists_with_names_are_merged(apply: Apply) -> None:
    variable, other = ({"name": name, "value": "1"} for name in ("NCCL_DEBUG", "NCCL_ALGO"))
    zone, host = ({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway"} for key in ("zone", "host"))
    apply(
        "team",
        SPEC
        | {
            "trainer": {"env": [variable], "imagePullSecrets": named("ours")},
            "scheduling": {"topologySpreadConstraints": [zone]},
        },
    )
    merged = apply(
        "platform",
        SPEC
        | {
            "trainer": {"env": [other], "imagePullSecrets": named("theirs")},
            "scheduling": {"topologySpreadConstraints": [host]},
        },
    )
    assert merged["trainer"]["env"] == [variable, other]
    assert merged["trainer"]["imagePullSecrets"] == named("ours", "theirs")
    assert merged["scheduling"]["topologySpreadConstraints"] == [zone, host]
    left = apply("platform", SPEC)
    assert left["trainer"]["env"] == [variable]
    assert left["trainer"]["imagePullSecrets"] == named("ours")


def test_annotations_and_requests_are_merged_by_key(apply: Apply) -> None:
    def spec(key: str, resource: str) -> dict[str, Any]:
        return SPEC | {"lineage": {"annotations": {key: "x"}}, "resources": {"requests": {resource: "1"}}}

    apply("team", spec("ticket", "cpu"))
    merged = apply("platform", spec("cost-centre", "ephemeral-storage"))
    assert merged["lineage"]["annotations"] == {"ticket": "x", "cost-centre": "x"}
    assert merged["resources"]["requests"] == {"cpu": "1", "ephemeral-storage": "1"}


def test_a_node_selector_and_a_reference_are_replaced_as_a_whole(apply: Apply) -> None:
    apply("team", SPEC | {"scheduling": {"nodeSelector": {"gpu": "a"}}, "storage": {"caSecretRef": {"name": "a"}}})
    replaced = apply(
        "platform", SPEC | {"scheduling": {"nodeSelector": {"zone": "b"}}, "storage": {"caSecretRef": {"name": "b"}}}
    )
    assert replaced["scheduling"]["nodeSelector"] == {"zone": "b"}
    assert replaced["storage"]["caSecretRef"] == {"name": "b"}
