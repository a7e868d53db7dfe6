"""NetworkPolicies enforced by the firewall of kube-router, a process of the node that writes packet rules."""

from __future__ import annotations

from pathlib import Path

import binaries
import kubectl
import network
from certificates import write_kubeconfig
from daemons import Daemon, ensure, stop, wait_until
from layout import NODE_NAME, SERVICE_RANGE, ClusterError, Layout

PROGRAM = "kube-router"
BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
RIGHTS = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "system:kube-router"}
rules:
- apiGroups: [""]
  resources: [namespaces, pods, services, nodes, endpoints]
  verbs: [get, list, watch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "system:kube-router"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:kube-router"}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: "system:kube-router"}
"""


def enforce(layout: Layout) -> None:
    """Enforce the NetworkPolicies of the cluster; ends when the packet rules are there."""
    if not BRIDGED.exists() or BRIDGED.read_text().strip() != "1":
        raise ClusterError(f"packets between pods of the bridge pass no packet rule: {BRIDGED} has to be 1")
    binaries.build((PROGRAM,))
    kubectl.tell(layout, "apply", "--filename=-", stdin=RIGHTS)
    ensure(layout, Daemon(PROGRAM, _argv(layout)))
    wait_until(network.has_policy_chains, 60, "the packet rules of NetworkPolicies", layout, PROGRAM)


def release(layout: Layout) -> None:
    """End the firewall and remove its packet rules: NetworkPolicies count no longer."""
    stop(layout, PROGRAM)
    network.remove_policy_chains()


def _argv(layout: Layout) -> list[str]:
    return [
        binaries.binary(PROGRAM),
        f"--kubeconfig={write_kubeconfig(layout, PROGRAM, layout.etc / 'kube-router.conf')}",
        f"--hostname-override={NODE_NAME}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        # kube-proxy and the CNI bridge are there already.
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        "--enable-cni=false",
        "--health-port=0",
        "--v=1",
    ]
