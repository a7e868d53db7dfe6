"""Free memory, as a container sees it."""

from pathlib import Path

import pytest

from finetune_trainer.monitoring.host_memory import available_bytes

GIB = 1024**3


def make(root: Path, **files: str) -> Path:
    texts = {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {16 * GIB // 1024} kB\n"} | files
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(version: int, limit: str, used: int, cache: int) -> dict[str, str]:
    if version == 2:
        names = ("memory.max", "memory.current", "memory.stat", "inactive_file")
    else:
        names = (
            "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file",
        )  # fmt: skip
    stat = f"anon 5\n{names[3]} {cache}\n"
    return {f"sys/fs/cgroup/{name}": text for name, text in zip(names, (limit, str(used), stat), strict=False)}


@pytest.mark.parametrize("version", [1, 2])
def test_the_containers_limit_less_what_it_holds_and_files_give_way(tmp_path: Path, version: int) -> None:
    root = make(tmp_path, **group(version, str(4 * GIB), 3 * GIB, 2 * GIB))
    assert available_bytes(root) == 3 * GIB


@pytest.mark.parametrize("version", [1, 2])
def test_without_a_limit_the_node_decides(tmp_path: Path, version: int) -> None:
    unlimited = {1: str(0x7FFFFFFFFFFFF000), 2: "max"}[version]
    assert available_bytes(make(tmp_path, **group(version, unlimited, GIB, 0))) == 16 * GIB


def test_without_cgroups_the_node_decides(tmp_path: Path) -> None:
    assert available_bytes(make(tmp_path)) == 16 * GIB


def test_this_machine_has_some() -> None:
    assert available_bytes() > 64 * 1024**2
