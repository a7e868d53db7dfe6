"""How much memory this container may still take."""

from pathlib import Path

UNLIMITED = 1 << 60


def available_bytes(root: Path = Path("/")) -> int:
    """What the node has free, or the container's limit less what it holds and the kernel cannot take back."""
    return min(_of_node(root), _of_group(root / "sys/fs/cgroup"))


def _of_node(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return UNLIMITED


def _of_group(group: Path) -> int:
    """Of either version of cgroups; files that were read fill it too, and give way."""
    if (group / "memory.max").is_file():
        limit, used, cache = group / "memory.max", group / "memory.current", "inactive_file"
    else:
        group /= "memory"
        limit, used, cache = group / "memory.limit_in_bytes", group / "memory.usage_in_bytes", "total_inactive_file"
    try:
        text = limit.read_text(encoding="ascii").strip()
        most = int(text) if text.isdecimal() else UNLIMITED
        held = int(used.read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        figures = dict(line.split() for line in lines if len(line.split()) == 2)
        return max(0, most - held + int(figures.get(cache, 0)))
    except (OSError, ValueError):
        return UNLIMITED
