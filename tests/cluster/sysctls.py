"""The kernel settings that a Kubernetes node changes, as they were before it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from layout import Layout

KERNEL = Path("/proc/sys")
CHANGED = (
    "net/ipv4/ip_forward",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def remember(layout: Layout) -> None:
    """Record the settings, unless that was done when this cluster was started."""
    record = _record(layout)
    if not record.exists():
        found = {name: (KERNEL / name).read_text().strip() for name in CHANGED if (KERNEL / name).exists()}
        record.write_text(json.dumps(found, indent=2))


def restore(layout: Layout) -> None:
    """Restore them and delete the record."""
    record = _record(layout)
    if not record.exists():
        return
    for name, value in json.loads(record.read_text()).items():
        if (KERNEL / name).read_text().strip() != value:
            # Where the machine lets nobody write it, nothing of the cluster has written it either.
            with suppress(PermissionError):
                (KERNEL / name).write_text(value)
    record.unlink()


def was_forwarding(layout: Layout) -> bool:
    """Whether this machine passed packets on between its links before the cluster was started."""
    record = _record(layout)
    return not record.exists() or json.loads(record.read_text()).get("net/ipv4/ip_forward") == "1"


def allow_forwarding() -> None:
    """Pods talk to what is outside of their bridge."""
    (KERNEL / "net/ipv4/ip_forward").write_text("1")


def _record(layout: Layout) -> Path:
    return layout.root / "sysctls.before"
