"""What pods of one attempt get to find, recognise and reach each other, and what nothing else gets."""

from typing import Any

import pytest

from finetune_api import handoff
from finetune_operator.manifests.jobs import Child, build_attempt, build_preflight
from finetune_operator.settings import Settings

Object = dict[str, Any]
STORAGE = {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 443}]}
DNS = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}


def attempt(scene: Any, settings: Settings, nodes: int = 2, number: int = 1, **changes: Any) -> Child:
    one = scene(resources={"numNodes": nodes, "gpusPerNode": 1}).to_training()
    return build_attempt(one.job, settings.model_copy(update=changes), "x/y:1", number)


def policy(child: Child) -> Object:
    assert child.network_policy
    assert child.network_policy["kind"] == "NetworkPolicy"
    assert child.network_policy["metadata"] == child.config_map["metadata"] | {"name": child.name}
    spec: Object = child.network_policy["spec"]
    return spec


def pods(child: Child) -> Object:
    found: Object = child.job["spec"]["template"]
    return found


def mounts(child: Child) -> dict[str, str]:
    (container,) = pods(child)["spec"]["containers"]
    return {one["name"]: one["mountPath"] for one in container["volumeMounts"]}


def test_the_token_is_in_an_object_of_its_own_that_only_pods_of_many_mount(scene: Any, settings: Settings) -> None:
    child = attempt(scene, settings)
    assert child.peer_token
    meta = child.peer_token["metadata"]
    assert (child.peer_token["kind"], child.peer_token["immutable"]) == ("ConfigMap", True)
    assert meta == child.config_map["metadata"] | {"name": f"{child.name}-peers"}
    (volume,) = [one for one in pods(child)["spec"]["volumes"] if one["name"] == "peers"]
    assert volume["configMap"]["name"] == meta["name"]
    assert mounts(child)["peers"] == handoff.PEER_TOKEN_DIR
    single = attempt(scene, settings, nodes=1)
    assert single.peer_token is None
    assert "peers" not in mounts(single)


def test_the_job_follows_from_its_spec_alone_so_that_two_operators_build_the_same(
    scene: Any, settings: Settings
) -> None:
    assert attempt(scene, settings) == attempt(scene, settings)


def test_only_pods_of_the_same_attempt_reach_its_pods(scene: Any, settings: Settings) -> None:
    child = attempt(scene, settings, isolate_training_pods=True)
    spec = policy(child)
    labels = spec["podSelector"]["matchLabels"]
    assert labels.items() <= pods(child)["metadata"]["labels"].items()
    assert spec["policyTypes"] == ["Ingress"]
    same, progress = spec["ingress"]
    assert same == {"from": [{"podSelector": {"matchLabels": labels}}]}
    assert progress == {"ports": [{"protocol": "TCP", "port": handoff.PROGRESS_PORT}]}
    later = pods(attempt(scene, settings, number=2))["metadata"]["labels"]
    assert not labels.items() <= later.items()
    preflight = build_preflight(scene().job, settings, "x/y:1")
    assert not labels.items() <= pods(preflight)["metadata"]["labels"].items()


def test_progress_is_for_the_clients_that_the_chart_lists(scene: Any, settings: Settings) -> None:
    clients = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    spec = policy(attempt(scene, settings, isolate_training_pods=True, progress_clients=clients))
    assert spec["ingress"][1]["from"] == clients


@pytest.mark.parametrize("nodes", [1, 2])
def test_egress_is_dns_the_same_attempt_and_what_the_chart_lists(scene: Any, settings: Settings, nodes: int) -> None:
    spec = policy(attempt(scene, settings, nodes, pod_egress=[STORAGE]))
    assert spec["policyTypes"] == ["Egress"]
    same = [{"to": [{"podSelector": spec["podSelector"]}]}] if nodes == 2 else []
    assert spec["egress"] == [DNS, *same, STORAGE]


def test_dns_has_the_ports_that_the_chart_lists(
    scene: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = policy(attempt(scene, settings, nodes=1, pod_egress=[], dns_ports=[53, 5353]))
    assert spec["egress"] == [
        {"ports": [{"protocol": name, "port": port} for port in (53, 5353) for name in ("UDP", "TCP")]}
    ]
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "x/y:1")
    monkeypatch.setenv("FINETUNE_DNS_PORTS", "53, 5353")
    assert Settings().dns_ports == [53, 5353]
    for text in ("", "0", "dns"):
        monkeypatch.setenv("FINETUNE_DNS_PORTS", text)
        with pytest.raises(ValueError, match="dns_ports"):
            Settings()


def test_preflight_has_the_same_egress(scene: Any, settings: Settings) -> None:
    child = build_preflight(scene().job, settings.model_copy(update={"pod_egress": []}), "x/y:1")
    assert policy(child)["egress"] == [DNS]


def test_no_policy_is_made_that_no_setting_asks_for(scene: Any, settings: Settings) -> None:
    assert attempt(scene, settings).network_policy is None
    assert attempt(scene, settings, nodes=1, isolate_training_pods=True).network_policy is None


def test_rules_are_json_and_a_misspelt_field_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "x/y:1")
    for text, expected in (("", None), ("[]", []), ('[{"ports":[{"port":443}]}]', [{"ports": [{"port": 443}]}])):
        monkeypatch.setenv("FINETUNE_POD_EGRESS", text)
        assert Settings().pod_egress == expected
    for text in ('[{"from":[]}]', "{}", "x"):
        monkeypatch.setenv("FINETUNE_POD_EGRESS", text)
        with pytest.raises(ValueError, match="pod_egress"):
            Settings()
