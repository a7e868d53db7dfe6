"""On a machine that cannot pull images, kind and Docker get the images that were built there."""

import subprocess
from pathlib import Path

import pytest

import kind


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that would run, with no cluster there yet."""
    ran: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        ran.append(command)
        if "--iidfile" in command:
            Path(command[command.index("--iidfile") + 1]).write_text("sha256:0123456789abcdef")

    none = subprocess.CompletedProcess([], 0, stdout="")
    monkeypatch.setattr(kind.subprocess, "run", lambda *_, **__: none)
    monkeypatch.setattr(kind, "run", run)
    monkeypatch.setattr(kind, "STATE", tmp_path)
    monkeypatch.setattr(kind, "CREATED", tmp_path / "kind.created")
    return ran


@pytest.mark.parametrize(("image", "expected"), [("", []), ("node:v1", ["--image", "node:v1"])])
def test_the_node_has_the_image_that_was_asked_for_or_kinds_own(
    commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, image: str, expected: list[str]
) -> None:
    monkeypatch.setattr(kind, "NODE_IMAGE", image)
    kind._ensure_cluster()
    (create,) = commands
    assert [word for word in create if word in {"--image", "node:v1"}] == expected


@pytest.mark.parametrize(("base", "expected"), [("", []), ("base:v1", ["BASE_IMAGE=base:v1"])])
def test_the_projects_images_have_the_base_that_was_asked_for_or_that_of_their_dockerfiles(
    commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, base: str, expected: list[str]
) -> None:
    monkeypatch.setattr(kind, "BASE_IMAGE", base)
    assert kind._load("finetune-operator", "operator") == "finetune-operator:0123456789ab"
    assert [word for word in commands[0] if word.startswith("BASE_IMAGE=")] == expected


@pytest.mark.parametrize(
    ("nodes_with_it", "is_loaded"),
    [
        (set(), True),
        ({"finetune-demo-control-plane"}, True),
        ({"finetune-demo-control-plane", "finetune-demo-worker"}, False),
    ],
)
def test_an_image_that_every_node_has_is_not_copied_again(
    commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, nodes_with_it: set[str], is_loaded: bool
) -> None:
    def answer(command: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        if command[:3] == ("kind", "get", "nodes"):
            return subprocess.CompletedProcess([], 0, stdout="finetune-demo-control-plane\nfinetune-demo-worker\n")
        assert command[:2] == ("docker", "exec")
        has_it = command[2] in nodes_with_it
        return subprocess.CompletedProcess([], 0, stdout=command[-1].removeprefix("name==") if has_it else "")

    monkeypatch.setattr(kind.subprocess, "run", answer)
    kind._load("finetune-operator", "operator")
    assert (("kind", "load", "docker-image") in [command[:3] for command in commands]) == is_loaded
