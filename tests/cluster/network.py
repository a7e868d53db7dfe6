"""The node's links, routes and packet rules, and their removal."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import sysctls
from layout import NODE_ADDRESS, POD_RANGE, S3_GRPC_PORT, SERVICE_RANGE, ClusterError, Layout

NETWORK_NAME = "finetune-cluster"
POD_BRIDGE = "ftc-pods"
# A bridge without ports, for the node's own address; not every kernel has dummy links.
NODE_LINK = "ftc-node"
CNI_CACHE = Path("/var/lib/cni")

TABLES = ("nat", "filter", "mangle")
POLICY_CHAINS = ("KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-")
"""What the names of the chains that enforce NetworkPolicies start with."""
_COMMENT = ["-m", "comment", "--comment", NETWORK_NAME]
RULES = [
    ["nat", "POSTROUTING", "-s", POD_RANGE, "!", "-d", POD_RANGE, *_COMMENT, "-j", "MASQUERADE"],
    # A machine that runs Docker drops what it forwards unless it is told otherwise.
    ["filter", "FORWARD", "-i", POD_BRIDGE, *_COMMENT, "-j", "ACCEPT"],
    ["filter", "FORWARD", "-o", POD_BRIDGE, *_COMMENT, "-j", "ACCEPT"],
]
# What arrives on another link never belongs to a pod, a Service or the node's address: a neighbour that routes these
# ranges to this machine gets no answer. Replies have this machine's own address here, before they are translated.
CLOSED_CHAIN = "FTC-CLOSED"
_CLOSED = [
    ["-i", "lo", "-j", "RETURN"],
    # The S3 server listens beside its port for commands of its own, which ask for no key.
    ["-i", POD_BRIDGE, "-p", "tcp", "-d", NODE_ADDRESS, "--dport", str(S3_GRPC_PORT), "-j", "DROP"],
    ["-i", POD_BRIDGE, "-j", "RETURN"],
    *(["-d", each, "-j", "DROP"] for each in (POD_RANGE, SERVICE_RANGE, NODE_ADDRESS)),
]
_JUMP = ["mangle", "PREROUTING", *_COMMENT, "-j", CLOSED_CHAIN]
# Forwarding is one setting for all links of a machine; where it was off, it stays off between the others.
_BETWEEN_OTHERS = ["mangle", "FORWARD", "!", "-i", POD_BRIDGE, "!", "-o", POD_BRIDGE, *_COMMENT, "-j", "DROP"]


def ensure_node_address(layout: Layout) -> None:
    """An address that only this machine has, and a route that keeps Service addresses inside."""
    if not has_node_link():
        _require_no_other_kubernetes()
        sysctls.remember(layout)
        _ip("link", "add", NODE_LINK, "type", "bridge")
        _ip("link", "set", NODE_LINK, "alias", str(layout.root))
    require_ours(layout)
    _close()
    _ip("address", "replace", f"{NODE_ADDRESS}/32", "dev", NODE_LINK)
    _ip("link", "set", NODE_LINK, "up")
    _ip("route", "replace", SERVICE_RANGE, "dev", NODE_LINK)


def has_node_link() -> bool:
    """Whether a cluster of this kind is set up here: the link is its first trace and its last."""
    return _link_exists(NODE_LINK)


def require_ours(layout: Layout) -> None:
    """A machine has one full cluster: its link carries the name of its state folder."""
    if not has_node_link():
        return
    owner = Path(f"/sys/class/net/{NODE_LINK}/ifalias").read_text().strip()
    if owner != str(layout.root):
        raise ClusterError(f"this machine's cluster has its state in {owner}: set FINETUNE_CLUSTER_DIR to that")


def ensure_pod_network(layout: Layout) -> None:
    """Packet rules, forwarding and the CNI configuration of the pods' bridge."""
    was_forwarding = sysctls.was_forwarding(layout)
    for rule in [*RULES, *([] if was_forwarding else [_BETWEEN_OTHERS])]:
        _insert(rule)
    sysctls.allow_forwarding()
    folder = layout.etc / "cni"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "10-finetune.conflist").write_text(json.dumps(_cni(layout), indent=2))


def _close() -> None:
    """Fill the chain of what is refused from other links, before the addresses behind it answer."""
    _iptables("mangle", "--new-chain", CLOSED_CHAIN)
    _require(_iptables("mangle", "--flush", CLOSED_CHAIN))
    for rule in _CLOSED:
        _require(_iptables("mangle", "--append", CLOSED_CHAIN, *rule))
    _insert(_JUMP)


def _insert(rule: Sequence[str]) -> None:
    table, chain, *rest = rule
    if _iptables(table, "--check", chain, *rest).returncode:
        _require(_iptables(table, "--insert", chain, *rest))


def remove(layout: Layout, sandboxes: Sequence[str]) -> None:
    """Take back every link, rule and lease of this cluster and its sandboxes."""
    for table, chain, *rule in [*RULES, _JUMP, _BETWEEN_OTHERS]:
        while _iptables(table, "--delete", chain, *rule).returncode == 0:
            pass
    for command in ("--flush", "--delete-chain"):
        _iptables("mangle", command, CLOSED_CHAIN)
    if has_node_link():
        # `up` began on a machine without any, so these are ours; without the link they are somebody else's.
        _remove_kubernetes_chains()
    results = CNI_CACHE / "results"
    for result in [*results.glob(f"{NETWORK_NAME}-*"), *(results / f"cni-loopback-{each}-lo" for each in sandboxes)]:
        result.unlink(missing_ok=True)
    shutil.rmtree(layout.root / "leases", ignore_errors=True)
    sysctls.restore(layout)
    for link in (POD_BRIDGE, NODE_LINK):
        if _link_exists(link):
            _ip("link", "delete", link)


def _require_no_other_kubernetes() -> None:
    """Its packet rules and ours have the same names, and neither could be removed without the other."""
    tables = [(command, table) for command in ("iptables", "ip6tables") for table in TABLES]
    if any(_kubernetes_chains(_saved(command, table)) for command, table in tables):
        raise ClusterError(
            "another Kubernetes has its packet rules (chains KUBE-…) on this machine: stop it and remove them "
            "(or reboot), or use it with CLUSTER=current"
        )


def _saved(command: str, table: str) -> list[str]:
    if shutil.which(f"{command}-save") is None:
        return []
    saved = subprocess.run([f"{command}-save", "-t", table], check=False, capture_output=True, text=True)
    return saved.stdout.splitlines()


def _kubernetes_chains(lines: Sequence[str]) -> list[str]:
    return [line[1:].split()[0] for line in lines if line.startswith(":KUBE-")]


def has_policy_chains() -> bool:
    """Whether the packet rules that enforce NetworkPolicies are there and in use."""
    lines = _saved("iptables", "filter")
    return any(line.startswith("-A FORWARD") and "KUBE-ROUTER-FORWARD" in line for line in lines)


def remove_policy_chains() -> None:
    """Remove the packet rules that enforce NetworkPolicies, and the sets of addresses that they name."""
    _remove_chains("iptables", "filter", POLICY_CHAINS)
    _remove_sets()


def _remove_kubernetes_chains() -> None:
    """The kubelet, kube-proxy and kube-router leave chains behind whose names start with KUBE-."""
    for command in ("iptables", "ip6tables"):
        for table in TABLES:
            _remove_chains(command, table, ("KUBE-",))
    _remove_sets()


def _remove_chains(command: str, table: str, prefixes: tuple[str, ...]) -> None:
    lines = _saved(command, table)
    chains = {name for name in _kubernetes_chains(lines) if name.startswith(prefixes)}
    if not chains:
        return
    rules = [line for line in lines if line.startswith("-A ") and line.split()[1] not in chains]
    jumps = [line.replace("-A ", "-D ", 1) for line in rules if not chains.isdisjoint(line.split())]
    script = [f"*{table}", *jumps, *(f"-F {name}" for name in chains), *(f"-X {name}" for name in chains)]
    subprocess.run([f"{command}-restore", "--noflush"], input="\n".join([*script, "COMMIT", ""]), text=True, check=True)


def _remove_sets() -> None:
    if shutil.which("ipset") is None:
        return
    names = subprocess.run(["ipset", "list", "-name"], check=False, capture_output=True, text=True).stdout.split()
    for name in (name for name in names if name.startswith("KUBE-")):
        _require(subprocess.run(["ipset", "destroy", name], check=False, capture_output=True, text=True))


def _cni(layout: Layout) -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(layout.root / "leases"),
    }
    bridge = {"type": "bridge", "bridge": POD_BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": addresses}
    return {"cniVersion": "0.4.0", "name": NETWORK_NAME, "plugins": [bridge]}


def _link_exists(name: str) -> bool:
    return Path(f"/sys/class/net/{name}").exists()


def _ip(*arguments: str) -> None:
    _require(subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True))


def _iptables(table: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["iptables", "--wait", "-t", table, *arguments], check=False, capture_output=True, text=True)


def _require(result: subprocess.CompletedProcess[str]) -> None:
    if result.returncode:
        raise ClusterError(f"{' '.join(result.args)}: {result.stderr.strip()}")
