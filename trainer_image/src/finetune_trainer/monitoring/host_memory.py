"""The memory that this container can still allocate."""

from pathlib import Path

UNLIMITED = 1 << 60


def available_bytes(root: Path = Path("/")) -> int:
    """Return the node's free memory, or the container's limit minus its unreclaimable memory, if that is less."""
    return min(_free_on_node(root), _free_in_cgroup(root / "sys/fs/cgroup"))


def _free_on_node(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return UNLIMITED


def _free_in_cgroup(group: Path) -> int:
    """Return the free memory of a cgroup of either version; inactive file cache counts as free."""
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
