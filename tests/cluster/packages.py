"""The Debian packages a node needs, and whether this machine can have one at all."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

from daemons import run_logged
from layout import ClusterError, Layout

# package → a program of it that shows it is there
PACKAGES = {
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "conntrack": "/usr/sbin/conntrack",
    "iptables": "/usr/sbin/iptables",
    "iproute2": "/usr/bin/ip",
    "ipset": "/usr/sbin/ipset",
    "ethtool": "/usr/sbin/ethtool",
    "socat": "/usr/bin/socat",
    "mmdebstrap": "/usr/bin/mmdebstrap",
    "openssl": "/usr/bin/openssl",
}


INSTEAD = "Use kind instead (`make kind-up`), or any cluster through KUBECONFIG with CLUSTER=current."


def require_linux() -> None:
    """The programs run as processes of this machine, which is found in /proc."""
    if platform.system() != "Linux":
        raise ClusterError(f"this runs on Linux, and here is {platform.system()}. {INSTEAD}")


def require_linux_and_root() -> None:
    """A node changes the network and mounts file systems, so nothing less will do."""
    require_linux()
    if os.geteuid() != 0:
        raise ClusterError(f"a node needs root: run the same command with sudo. {INSTEAD}")


def install_missing(layout: Layout) -> None:
    """Install what is missing with apt, without starting any service of it."""
    absent = [package for package, program in PACKAGES.items() if not os.access(program, os.X_OK)]
    if not absent:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(f"install these packages and try again: {' '.join(absent)}")
    print(f"installing Debian packages: {' '.join(absent)}", flush=True)
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *absent]
    if subprocess.run(install, check=False, capture_output=True, env={**os.environ, **quiet}).returncode:
        run_logged(layout, "apt", ["apt-get", "update"])
        run_logged(layout, "apt", install, quiet)
