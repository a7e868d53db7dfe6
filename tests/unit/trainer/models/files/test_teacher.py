"""The teacher of objective Distillation on a hub: one commit from the check to the result."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.models.files.teacher import check_teacher, fetch_teacher, pin_teacher
from finetune_trainer.storage.local import LocalStore

OLD, NEW = "a" * 40, "b" * 40
URI = "hf://acme/larger"
JOB: dict[str, Any] = {"objective": "Distillation", "distillation": {"teacher": {"uri": URI, "revision": "v2"}}}


class Hub(LocalStore):
    """A hub of one repository whose branch can move."""

    head = OLD

    def pin(self, uri: str, revision: str | None = None) -> str:
        """Return the URI with the commit of the branch."""
        return f"{uri}@{self.head if revision == 'v2' else revision}"


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path) -> Hub:
    """The hub, with a copy of the model."""
    return Hub({URI: shutil.copytree(model_folder, tmp_path / "larger")})


def test_a_teacher_stays_at_the_commit_that_was_checked(world: Any, model_folder: Path, hub: Hub) -> None:
    config = world.with_config(JOB).config
    checked = check_teacher(config, hub, world.workspace / "teacher", model_folder)
    assert checked
    assert checked.model.revision == OLD
    assert checked.facts.parameters == 22
    assert not (checked.folder / "model.safetensors").exists()
    hub.head = NEW
    found = fetch_teacher(
        config, {"uri": URI, "revision": OLD}, hub, world.workspace / "teacher", on_bytes=lambda _: None
    )
    assert found
    model, folder = found
    assert model.revision == OLD
    assert (folder / "model.safetensors").is_file()
    pinned = pin_teacher(config, model).spec.distillation
    assert pinned
    assert pinned.teacher.revision == OLD


def test_a_job_without_a_teacher_reads_none(world: Any, model_folder: Path) -> None:
    assert check_teacher(world.config, world.storage, world.workspace / "teacher", model_folder) is None
    assert fetch_teacher(world.config, {}, world.storage, world.workspace, lambda _: None) is None
