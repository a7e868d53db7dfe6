"""etcd, the API server and its two controllers' processes."""

from __future__ import annotations

import shutil

import kubectl
from binaries import binary
from certificates import ensure_certificates, write_kubeconfig
from daemons import Daemon, ensure, recorded, stop, wait_until
from layout import LOOPBACK, SCHEDULER_PORT, SERVICE_RANGE, Layout


def start_api_server(layout: Layout) -> bool:
    """etcd and the API server, answering; True if either was started now."""
    ensure_certificates(layout)
    write_kubeconfig(layout, "admin", layout.kubeconfig)
    started = ensure(layout, _etcd(layout))
    started |= ensure(layout, _api_server(layout))
    wait_until(lambda: kubectl.is_ready(layout), 180, "the API server", layout, "kube-apiserver")
    return started


def start_controller_manager(layout: Layout) -> bool:
    """The controllers behind namespaces' deletion, Jobs, service accounts and garbage collection."""
    return ensure(layout, _controller_manager(layout))


def start_scheduler(layout: Layout) -> bool:
    """The scheduler."""
    return ensure(layout, _scheduler(layout))


def stop_control_plane_only(layout: Layout) -> None:
    """End a control plane without a node and forget its state."""
    for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
        stop(layout, name)
    if not recorded(layout):
        for folder in ("etcd", "pki", "etc"):
            shutil.rmtree(layout.root / folder, ignore_errors=True)
        for name in ("ports.json", "kubeconfig"):
            (layout.root / name).unlink(missing_ok=True)


def _etcd(layout: Layout) -> Daemon:
    """Other users of this machine, and pages in its browsers, get nothing without a certificate of etcd's authority."""
    pki = layout.pki
    client = f"https://{LOOPBACK}:{layout.ports.etcd}"
    peer = f"https://{LOOPBACK}:{layout.ports.etcd_peer}"
    return Daemon(
        "etcd",
        [
            binary("etcd"),
            f"--data-dir={layout.root / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            *(f"--{role}cert-file={pki}/etcd.crt" for role in ("", "peer-")),
            *(f"--{role}key-file={pki}/etcd.key" for role in ("", "peer-")),
            *(f"--{role}trusted-ca-file={pki}/etcd-ca.crt" for role in ("", "peer-")),
            *(f"--{role}client-cert-auth" for role in ("", "peer-")),
            f"--host-whitelist={LOOPBACK}",
            f"--cors={client}",
            "--enable-grpc-gateway=false",
            "--unsafe-no-fsync",  # this state is thrown away with the cluster
            "--log-level=warn",
        ],
    )


def _api_server(layout: Layout) -> Daemon:
    pki = layout.pki
    return Daemon(
        "kube-apiserver",
        [
            binary("kube-apiserver"),
            f"--etcd-servers=https://{LOOPBACK}:{layout.ports.etcd}",
            f"--etcd-cafile={pki}/etcd-ca.crt",
            f"--etcd-certfile={pki}/apiserver-etcd-client.crt",
            f"--etcd-keyfile={pki}/apiserver-etcd-client.key",
            f"--bind-address={layout.address}",
            f"--advertise-address={layout.address}",
            f"--secure-port={layout.ports.apiserver}",
            # A loopback address is not allowed in the endpoints of the kubernetes Service.
            f"--endpoint-reconciler-type={'none' if layout.address == LOOPBACK else 'lease'}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--cert-dir={pki}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki}/service-accounts.pub",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
            f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
            f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
            # Without it `kubectl logs` looks the node's name up in DNS.
            "--kubelet-preferred-address-types=InternalIP",
            # Without the aggregation settings an APIService answers 403 and no namespace can end.
            f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
            f"--proxy-client-key-file={pki}/front-proxy-client.key",
            "--enable-aggregator-routing=true",
        ],
    )


def _controller_manager(layout: Layout) -> Daemon:
    pki = layout.pki
    return Daemon(
        "kube-controller-manager",
        [
            binary("kube-controller-manager"),
            f"--kubeconfig={write_kubeconfig(layout, 'controller-manager', layout.etc / 'controller-manager.conf')}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={layout.ports.controller_manager}",
            f"--cert-dir={pki}",
            "--leader-elect=false",
            f"--root-ca-file={pki}/ca.crt",
            f"--service-account-private-key-file={pki}/service-accounts.key",
            "--use-service-account-credentials=true",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
        ],
    )


def _scheduler(layout: Layout) -> Daemon:
    return Daemon(
        "kube-scheduler",
        [
            binary("kube-scheduler"),
            f"--kubeconfig={write_kubeconfig(layout, 'scheduler', layout.etc / 'scheduler.conf')}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={SCHEDULER_PORT}",
            f"--cert-dir={layout.pki}",
            "--leader-elect=false",
        ],
    )
