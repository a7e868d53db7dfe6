"""The cluster's certificate authorities, certificates and kubeconfigs, made with openssl."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

from layout import KUBERNETES_SERVICE, LOOPBACK, NODE_ADDRESS, NODE_NAME, ClusterError, Layout

DAYS = "3650"

# name → subject; each becomes a client certificate signed by the cluster's authority.
CLIENTS = {
    "admin": "/O=system:masters/CN=kubernetes-admin",
    "apiserver-kubelet-client": "/O=system:masters/CN=kube-apiserver-kubelet-client",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "coredns": "/CN=system:coredns",
    "kube-router": "/CN=system:kube-router",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE_NAME}",
}
SERVER_NAMES = ",".join(
    [
        *(f"IP:{address}" for address in (LOOPBACK, NODE_ADDRESS, KUBERNETES_SERVICE)),
        *(f"DNS:{name}" for name in ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")),
        "DNS:kubernetes.default.svc.cluster.local",
    ]
)


def ensure_certificates(layout: Layout) -> None:
    """Make what is missing; an existing authority and its certificates stay."""
    layout.pki.mkdir(parents=True, exist_ok=True)
    layout.pki.chmod(0o700)
    for authority in ("ca", "front-proxy-ca", "etcd-ca"):
        _make_authority(layout.pki, authority)
    accounts = layout.pki / "service-accounts"
    if not accounts.with_suffix(".pub").exists():
        _make_key(accounts.with_suffix(".key"))
        _openssl("pkey", "-in", f"{accounts}.key", "-pubout", "-out", f"{accounts}.pub")
    _sign(layout.pki, "apiserver", "/CN=kube-apiserver", "ca", f"serverAuth\nsubjectAltName={SERVER_NAMES}")
    _sign(layout.pki, "front-proxy-client", "/CN=front-proxy-client", "front-proxy-ca", "clientAuth")
    # A client of the API server is none of etcd, so that its authority signs for these two alone.
    _sign(layout.pki, "etcd", "/CN=etcd", "etcd-ca", f"serverAuth,clientAuth\nsubjectAltName=IP:{LOOPBACK}")
    _sign(layout.pki, "apiserver-etcd-client", "/CN=kube-apiserver", "etcd-ca", "clientAuth")
    for name, subject in CLIENTS.items():
        _sign(layout.pki, name, subject, "ca", "clientAuth")


def write_kubeconfig(layout: Layout, client: str, path: Path) -> Path:
    """A kubeconfig with everything inside it, so that it can be copied."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "finetune",
        "contexts": [{"name": "finetune", "context": {"cluster": "finetune", "user": client}}],
        "clusters": [
            {
                "name": "finetune",
                "cluster": {
                    "server": layout.server,
                    "certificate-authority-data": _encoded(layout.pki / "ca.crt"),
                },
            }
        ],
        "users": [
            {
                "name": client,
                "user": {
                    "client-certificate-data": _encoded(layout.pki / f"{client}.crt"),
                    "client-key-data": _encoded(layout.pki / f"{client}.key"),
                },
            }
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(content, indent=2))
    return path


def _make_authority(pki: Path, name: str) -> None:
    if (pki / f"{name}.crt").exists():
        return
    _make_key(pki / f"{name}.key")
    _openssl(
        "req", "-x509", "-new", "-key", f"{pki}/{name}.key", "-subj", f"/CN=finetune-{name}",
        "-days", DAYS, "-out", f"{pki}/{name}.crt",
    )  # fmt: skip


def _make_key(path: Path) -> None:
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(path))


def _sign(pki: Path, name: str, subject: str, authority: str, usage: str) -> None:
    if (pki / f"{name}.crt").exists():
        return
    _make_key(pki / f"{name}.key")
    extensions = pki / f"{name}.ext"
    extensions.write_text(f"extendedKeyUsage={usage}\nkeyUsage=digitalSignature\n")
    _openssl("req", "-new", "-key", f"{pki}/{name}.key", "-subj", subject, "-out", f"{pki}/{name}.csr")
    _openssl(
        "x509", "-req", "-in", f"{pki}/{name}.csr", "-CA", f"{pki}/{authority}.crt",
        "-CAkey", f"{pki}/{authority}.key", "-CAcreateserial", "-days", DAYS,
        "-extfile", str(extensions), "-out", f"{pki}/{name}.crt",
    )  # fmt: skip


def _openssl(*arguments: str) -> None:
    result = subprocess.run(["openssl", *arguments], check=False, capture_output=True, text=True)
    if result.returncode:
        raise ClusterError(f"openssl {arguments[0]}: {result.stderr.strip()}")


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
