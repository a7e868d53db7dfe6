"""Hub, tokens, cache and proxies: what the operator's defaults fill in, and what the pods find."""

import json
from typing import Any

import pytest

from finetune_operator.manifests.effective_spec import build_effective_spec, hub_endpoint, hub_tokens
from finetune_operator.manifests.jobs import build_preflight
from finetune_operator.settings import Settings

MODEL = {"model": {"uri": "hf://owner/model"}}
OWN = {"model": {"uri": "hf://owner/model", "credentialsSecretRef": {"name": "mine"}}}
ROWS = {
    "dataset": {
        "train": {"uri": "hf://datasets/owner/rows", "credentialsSecretRef": {"name": "rows"}},
        "validation": {"uri": "hf://datasets/owner/held-out"},
    }
}
PUSH: dict[str, Any] = {"output": {"uri": "s3://bucket/out", "hub": {"repo": "acme/helpdesk"}}}
OWN_PUSH: dict[str, Any] = {
    "output": {"uri": "s3://bucket/out", "hub": PUSH["output"]["hub"] | {"credentialsSecretRef": {"name": "write"}}}
}
MIRROR = {"default_hub_endpoint": "https://mirror.example", "default_hub_token_secret": "team-token"}


def _settings(**fields: Any) -> Settings:
    return Settings(trainer_image="registry.example/trainer:1", **fields)


def _mounted(job: Any) -> dict[str, tuple[Any, Any]]:
    pod = job["spec"]["template"]["spec"]
    mounts = {one["name"]: one for one in pod["containers"][0]["volumeMounts"]}
    assert set(mounts) == {one["name"] for one in pod["volumes"]}
    return {one["name"]: (one, mounts[one["name"]]) for one in pod["volumes"]}


def _environment(job: Any) -> dict[str, Any]:
    return {one["name"]: one.get("value") for one in job["spec"]["template"]["spec"]["containers"][0]["env"]}


SOURCES = {"dataset": {"train": {"sources": [{"uri": "s3://bucket/rows"}, {"uri": "hf://datasets/acme/rows"}]}}}
BUCKETS = {"dataset": {"train": {"sources": [{"uri": "s3://bucket/rows"}, {"uri": "s3://bucket/more"}]}}}


@pytest.mark.parametrize(
    ("own", "default", "endpoint", "authority"),
    [
        (None, {}, "https://huggingface.co", None),
        (None, MIRROR | {"default_hub_ca_secret": "ca"}, "https://mirror.example", "ca"),
        ({"caSecretRef": {"name": "own"}}, MIRROR | {"default_hub_ca_secret": "ca"}, "https://mirror.example", "own"),
        ({"endpoint": "https://own.example"}, MIRROR | {"default_hub_ca_secret": "ca"}, "https://own.example", None),
        (None, {"default_hub_ca_secret": "ca"}, "https://huggingface.co", "ca"),
    ],
)
def test_the_default_hub_completes_a_hub_without_an_endpoint(
    scene: Any, own: Any, default: Any, endpoint: str, authority: str | None
) -> None:
    spec, settings = scene(**({"hub": own} if own else {})).job.spec, _settings(**default)
    hub = build_effective_spec(spec, settings).hub
    assert hub_endpoint(spec, settings) == endpoint
    assert (hub.ca_secret_ref.name if hub and hub.ca_secret_ref else None) == authority


@pytest.mark.parametrize(
    ("spec", "default", "tokens"),
    [
        ({}, MIRROR, []),
        (MODEL, {}, []),
        (MODEL, MIRROR, [("model", "team-token", True)]),
        (OWN, MIRROR, [("model", "mine", False)]),
        (MODEL | {"hub": {"endpoint": "https://mirror.example/"}}, MIRROR, [("model", "team-token", True)]),
        (MODEL | {"hub": {"endpoint": "https://huggingface.co"}}, MIRROR, []),
        (MODEL | {"hub": {"endpoint": "https://evil.example"}}, {"default_hub_token_secret": "team-token"}, []),
        (OWN | {"hub": {"endpoint": "https://own.example"}}, MIRROR, [("model", "mine", False)]),
        (OWN | ROWS, {}, [("model", "mine", False), ("train", "rows", False)]),
        (ROWS, MIRROR, [("train", "rows", False), ("validation", "team-token", True)]),
        (SOURCES, MIRROR, [("train", "team-token", True)]),
        (PUSH, MIRROR, [("output", "team-token", True)]),
        (PUSH | {"hub": {"endpoint": "https://own.example"}}, MIRROR, []),
        (OWN_PUSH | {"hub": {"endpoint": "https://own.example"}}, MIRROR, [("output", "write", False)]),
        (BUCKETS, MIRROR, []),
    ],
)
def test_the_default_token_is_only_used_for_the_default_hub(scene: Any, spec: Any, default: Any, tokens: Any) -> None:
    found = hub_tokens(scene(**spec).job.spec, _settings(**default))
    assert [(one.role.value, one.secret, one.is_default) for one in found] == tokens


@pytest.mark.parametrize("kind", ["preflight", "trainer"])
def test_tokens_are_files_by_role_and_only_a_default_one_may_be_absent(built: Any, kind: str) -> None:
    volume, mount = _mounted(built(kind, using=_settings(**MIRROR), **OWN | ROWS))["hub-tokens"]
    assert mount == {"name": "hub-tokens", "mountPath": "/etc/finetune/hub", "readOnly": True}
    assert volume["projected"]["defaultMode"] == 0o440
    assert [one["secret"] for one in volume["projected"]["sources"]] == [
        {"name": "mine", "items": [{"key": "HF_TOKEN", "path": "model/HF_TOKEN"}]},
        {"name": "rows", "items": [{"key": "HF_TOKEN", "path": "train/HF_TOKEN"}]},
        {"name": "team-token", "items": [{"key": "HF_TOKEN", "path": "validation/HF_TOKEN"}], "optional": True},
    ]


def test_the_config_names_the_hub_and_only_the_secrets_that_must_be_there(scene: Any) -> None:
    child = build_preflight(scene(**MODEL | ROWS).job, _settings(**MIRROR), "x/y:1")
    spec = json.loads(child.config_map["data"]["config.json"])["spec"]
    assert spec["hub"] == {"endpoint": "https://mirror.example"}
    assert spec["model"] == MODEL["model"]
    assert spec["dataset"]["train"]["credentialsSecretRef"] == {"name": "rows"}
    assert spec["dataset"]["validation"] == ROWS["dataset"]["validation"]


@pytest.mark.parametrize("kind", ["preflight", "trainer"])
def test_cache_and_ca_are_mounted_in_both_pods(built: Any, kind: str) -> None:
    found = _mounted(built(kind, modelCache={"claimName": "hf-cache"}, hub={"caSecretRef": {"name": "ca"}}, **MODEL))
    volume, mount = found["model-cache"]
    assert volume["persistentVolumeClaim"] == {"claimName": "hf-cache"}
    assert mount == {"name": "model-cache", "mountPath": "/model-cache"}
    volume, mount = found["hub-ca"]
    assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    assert mount == {"name": "hub-ca", "mountPath": "/etc/finetune/hub-ca", "readOnly": True}


@pytest.mark.parametrize("kind", ["preflight", "trainer"])
def test_the_key_and_the_authority_of_a_registry_are_mounted_in_both_pods(built: Any, kind: str) -> None:
    registry = {"repository": "r.example/bot", "credentialsSecretRef": {"name": "push"}, "caSecretRef": {"name": "ca"}}
    found = _mounted(built(kind, output={"uri": "s3://bucket/out", "oci": registry}))
    volume, mount = found["registry"]
    items = [{"key": ".dockerconfigjson", "path": ".dockerconfigjson"}]
    assert volume["secret"] == {"secretName": "push", "defaultMode": 0o440, "items": items}
    assert mount == {"name": "registry", "mountPath": "/etc/finetune/registry", "readOnly": True}
    volume, mount = found["registry-ca"]
    assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    assert mount == {"name": "registry-ca", "mountPath": "/etc/finetune/registry-ca", "readOnly": True}
    assert "registry" not in _mounted(built(kind, output={"uri": "s3://bucket/out"}))


CLAIMS = {
    "model": {"uri": "pvc://models/llama"},
    "dataset": {
        "train": {"sources": [{"uri": "pvc://rows/a.jsonl"}, {"uri": "pvc://models/b.jsonl"}]},
        "validationSplitPercent": 10,
    },
    "evaluation": {"ability": {"uri": "pvc://school/questions.jsonl"}},
}


@pytest.mark.parametrize("kind", ["preflight", "trainer"])
def test_each_claim_of_a_source_is_mounted_once_and_read_only(built: Any, kind: str) -> None:
    found = _mounted(built(kind, **CLAIMS))
    assert [one for one in found if one.startswith("claim-")] == ["claim-0", "claim-1", "claim-2"]
    for name, claim in (("claim-0", "models"), ("claim-1", "rows"), ("claim-2", "school")):
        volume, mount = found[name]
        assert volume["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
        assert mount == {"name": name, "mountPath": f"/claims/{claim}", "readOnly": True}


def test_a_claim_that_is_the_model_cache_too_is_one_volume_with_two_mounts(built: Any) -> None:
    pod = built("trainer", modelCache={"claimName": "rows"}, **CLAIMS)["spec"]["template"]["spec"]
    names = [one["name"] for one in pod["volumes"]]
    assert len(names) == len(set(names))
    (volume,) = [one for one in pod["volumes"] if one["name"] == "model-cache"]
    assert volume["persistentVolumeClaim"] == {"claimName": "rows"}
    mounts = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "model-cache"]
    assert sorted((one["mountPath"], one.get("readOnly", False)) for one in mounts) == [
        *(("/claims/rows", True), ("/model-cache", False)),
    ]


REWARDED = {"objective": "RLHF", "rlhf": {"rewardModel": {"uri": "s3://bucket/reward"}}}


@pytest.mark.parametrize(("spec", "is_mounted"), [({}, False), (MODEL, True), (ROWS, True), (REWARDED, True)])
def test_the_default_ca_is_required_only_for_jobs_that_may_use_a_hub(built: Any, spec: Any, is_mounted: bool) -> None:
    """A reward model's own base may be on a hub, which its URI does not show."""
    chosen = _settings(**MIRROR | {"default_hub_ca_secret": "ca"})
    assert ("hub-ca" in _mounted(built(using=chosen, **spec))) is is_mounted


@pytest.mark.parametrize("kind", ["preflight", "trainer"])
def test_proxies_are_set_in_upper_and_lower_case(built: Any, kind: str) -> None:
    chosen = _settings(https_proxy="http://proxy.example:3128", no_proxy="minio.minio,.svc,$(HOME)")
    found = _environment(built(kind, using=chosen))
    assert found["https_proxy"] == found["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert found["no_proxy"] == found["NO_PROXY"] == "minio.minio,.svc,$$(HOME)"
    assert not {"http_proxy", "HTTP_PROXY"} & set(found)


def test_without_a_proxy_there_are_no_exceptions_and_no_telemetry_ever(built: Any) -> None:
    found = _environment(built(using=_settings(no_proxy=".svc")))
    assert not {"no_proxy", "NO_PROXY"} & set(found)
    assert found["HF_HUB_DISABLE_TELEMETRY"] == "1"
