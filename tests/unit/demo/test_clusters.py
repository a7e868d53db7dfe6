"""CLUSTER=auto is the cluster on which the tests run."""

import os
import sys
from pathlib import Path

import clusters
import pytest


@pytest.fixture
def docker_with_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker that has kind's node image."""
    for name in ("docker", "kind"):
        (tmp_path / name).write_text("#!/bin/sh\necho 0123456789ab\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("docker_with_kind")
def test_auto_is_the_tested_cluster_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert clusters.choose("auto") == "native"
    assert "tests run" in clusters.ABOUT["native"]


@pytest.mark.parametrize(("platform", "user"), [("darwin", 0), ("linux", 1000)])
def test_where_the_tested_cluster_cannot_run_the_others_are_named(
    monkeypatch: pytest.MonkeyPatch, platform: str, user: int
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(SystemExit, match=r"needs Linux and root; here use CLUSTER=kind .* or CLUSTER=current"):
        clusters.choose("auto")


@pytest.mark.parametrize("asked", ["kind", "native", "current"])
def test_a_cluster_that_is_named_is_taken(asked: str) -> None:
    assert clusters.choose(asked) == asked


@pytest.mark.usefixtures("docker_with_kind")
@pytest.mark.parametrize("cluster", ["kind", "current"])
def test_a_missing_program_is_named_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=f"CLUSTER={cluster} needs these programs in PATH: kubectl, helm"):
        clusters.start(cluster)
