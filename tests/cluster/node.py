"""The kubelet, kube-proxy and CoreDNS."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress
from string import Template

import kubectl
from binaries import binary
from certificates import write_kubeconfig
from daemons import Daemon, ensure
from layout import (
    CLUSTER_DOMAIN,
    DNS_PORT,
    DNS_READY_PORT,
    DNS_SERVICE,
    KUBELET_HEALTH_PORT,
    KUBELET_PORT,
    KUBERNETES_SERVICE,
    LOOPBACK,
    NODE_ADDRESS,
    NODE_NAME,
    POD_RANGE,
    PROXY_HEALTH_PORT,
    PROXY_METRICS_PORT,
    Layout,
)


def start_kubelet(layout: Layout) -> bool:
    """The node itself."""
    config = layout.etc / "kubelet.json"
    config.write_text(json.dumps(_kubelet_config(layout), indent=2))
    argv = [
        binary("kubelet"),
        f"--kubeconfig={write_kubeconfig(layout, 'kubelet', layout.etc / 'kubelet.conf')}",
        f"--config={config}",
        f"--root-dir={layout.root / 'kubelet'}",
        f"--cert-dir={layout.root / 'kubelet' / 'pki'}",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={NODE_ADDRESS}",
    ]
    return ensure(layout, Daemon("kubelet", argv))


def start_proxy(layout: Layout) -> bool:
    """Service addresses."""
    return ensure(layout, Daemon("kube-proxy", proxy_argv(layout)))


def proxy_argv(layout: Layout) -> list[str]:
    """kube-proxy's command line."""
    return [
        binary("kube-proxy"),
        f"--kubeconfig={write_kubeconfig(layout, 'proxy', layout.etc / 'proxy.conf')}",
        f"--hostname-override={NODE_NAME}",
        "--proxy-mode=iptables",
        f"--cluster-cidr={POD_RANGE}",
        # Replies between two pods of one bridge pass no packet rule unless the node is their source.
        "--masquerade-all=true",
        # The kernel's settings are the machine owner's.
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
        "--iptables-localhost-nodeports=false",
        "--oom-score-adj=0",
        f"--metrics-bind-address={LOOPBACK}:{PROXY_METRICS_PORT}",
        f"--healthz-bind-address={LOOPBACK}:{PROXY_HEALTH_PORT}",
    ]


def start_dns(layout: Layout) -> bool:
    """CoreDNS as a process of the node behind the Service that pods ask."""
    kubeconfig = write_kubeconfig(layout, "coredns", layout.etc / "coredns.conf")
    corefile = layout.etc / "Corefile"
    corefile.write_text(
        Template(COREFILE).substitute(
            port=DNS_PORT,
            address=NODE_ADDRESS,
            ready=f"{LOOPBACK}:{DNS_READY_PORT}",
            domain=CLUSTER_DOMAIN,
            kubeconfig=kubeconfig,
        )
    )
    kubectl.tell(layout, "apply", "--filename=-", stdin=DNS_OBJECTS)
    return ensure(layout, Daemon("coredns", [binary("coredns"), "-conf", str(corefile)]))


def dns_answers() -> bool:
    """Whether the cluster's DNS Service knows the API server's name."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(1)
        labels = f"kubernetes.default.svc.{CLUSTER_DOMAIN}".split(".")
        name = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
        asking.sendto(struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1), (DNS_SERVICE, 53))
        return socket.inet_aton(KUBERNETES_SERVICE) in asking.recv(512)
    return False


def _kubelet_config(layout: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "port": KUBELET_PORT,
        "healthzPort": KUBELET_HEALTH_PORT,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(layout.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "clusterDomain": CLUSTER_DOMAIN,
        "clusterDNS": [DNS_SERVICE],
        "podLogsDir": str(layout.root / "pod-logs"),
        "volumePluginDir": str(layout.root / "volume-plugins"),
        "serializeImagePulls": False,
        # How long a changed Secret may take to show in a pod that mounts it: Kueue waits for its own certificates.
        "syncFrequency": "10s",
        # The disk belongs to the machine's owner: images stay, and pods are evicted only when it is full.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }


COREFILE = """\
.:$port {
    bind $address
    errors
    ready $ready
    kubernetes $domain in-addr.arpa ip6.arpa {
        kubeconfig $kubeconfig
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }
    forward . /etc/resolv.conf
    cache 5
}
"""

DNS_OBJECTS = f"""\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: "system:coredns"}}
rules:
- apiGroups: [""]
  resources: [services, pods, namespaces]
  verbs: [list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: "system:coredns"}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:coredns"}}
subjects:
- {{apiGroup: rbac.authorization.k8s.io, kind: User, name: "system:coredns"}}
---
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec:
  clusterIP: {DNS_SERVICE}
  ports:
  - {{name: dns, port: 53, protocol: UDP}}
  - {{name: dns-tcp, port: 53, protocol: TCP}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns-node
  namespace: kube-system
  labels: {{kubernetes.io/service-name: kube-dns, endpointslice.kubernetes.io/managed-by: finetune-cluster}}
addressType: IPv4
endpoints:
- addresses: [{NODE_ADDRESS}]
ports:
- {{name: dns, port: {DNS_PORT}, protocol: UDP}}
- {{name: dns-tcp, port: {DNS_PORT}, protocol: TCP}}
"""
