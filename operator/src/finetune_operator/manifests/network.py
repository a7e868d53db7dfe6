"""What the pods of one attempt need to find and recognise each other, and to be reached by no other pod."""

import re

from finetune_api import handoff, names
from finetune_operator.kube.objects import Object
from finetune_operator.settings import Settings

TOKEN = re.compile(r"[0-9a-f]{64}")
FINDING_LABELS = (names.LABEL_MANAGED_BY, names.LABEL_JOB_NAME, names.LABEL_COMPONENT, names.LABEL_ATTEMPT)
"""By which the operator finds a Job and its pods, and which no other Job has together."""


def build_service(meta: Object) -> Object:
    """Build the headless Service that resolves the pods of one attempt, even before they are ready."""
    ports = {"rendezvous": handoff.RENDEZVOUS_PORT, "lifeline": handoff.PEER_LINK_PORT}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": _pods_of(meta),
            "ports": [{"name": name, "port": port} for name, port in ports.items()],
        },
    }


def build_peer_token(meta: Object) -> Object:
    """Build the ConfigMap of the token with which the pods of one attempt recognise each other, without the token."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta | {"name": f"{meta['name']}-peers"},
        "immutable": True,
        "data": {handoff.PEER_TOKEN_FILE: ""},
    }


def fill_token(built: Object, token: str) -> Object:
    """Return the ConfigMap with its token, which is random and therefore not the builder's."""
    return built | {"data": {handoff.PEER_TOKEN_FILE: token}}


def is_token(data: Object) -> bool:
    """Return whether a ConfigMap's data is a token and nothing else."""
    return data.keys() == {handoff.PEER_TOKEN_FILE} and bool(TOKEN.fullmatch(data[handoff.PEER_TOKEN_FILE]))


def build_network_policy(meta: Object, settings: Settings, nodes: int) -> Object | None:
    """Build the NetworkPolicy of the pods of one Job; None if the settings ask for none."""
    same = {"podSelector": {"matchLabels": _pods_of(meta)}}
    rules: Object = {}
    if settings.isolate_training_pods and nodes > 1:
        clients: Object = {"from": settings.progress_clients} if settings.progress_clients else {}
        progress = clients | {"ports": [{"protocol": "TCP", "port": handoff.PROGRESS_PORT}]}
        rules["ingress"] = [{"from": [same]}, progress]
    if settings.pod_egress is not None:
        rules["egress"] = [build_dns_rule(settings), *([{"to": [same]}] if nodes > 1 else []), *settings.pod_egress]
    if not rules:
        return None
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta,
        "spec": same | {"policyTypes": [name.title() for name in rules]} | rules,
    }


def build_dns_rule(settings: Settings) -> Object:
    """Build the egress rule of DNS, to any address: with a cache on each node it is not a pod that a selector names."""
    ports = [{"protocol": protocol, "port": port} for port in settings.dns_ports for protocol in ("UDP", "TCP")]
    return {"ports": ports}


def _pods_of(meta: Object) -> dict[str, str]:
    """Return the labels that only the pods of this Job have."""
    return {label: meta["labels"][label] for label in FINDING_LABELS}
