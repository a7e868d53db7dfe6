"""The checkpoints of a job in storage: which files are theirs, and which of them are removed."""

import pytest

from finetune_trainer.storage.protocol import Entry
from finetune_trainer.training.stored_checkpoints import group_by_step, superseded


def test_unclaimed_files_are_not_changed() -> None:
    keys = ["step-000010/a", "step-000010/manifest.json", "step-7/a", "notes.txt", "step-000020", "mine/a"]
    assert group_by_step(Entry(key, 3) for key in keys) == {10: {"a": 3, "manifest.json": 3}}


@pytest.mark.parametrize(
    ("steps", "whole", "kept", "removed"),
    [([1, 2, 3], [1, 2, 3], 2, [1]), ([1, 2, 3], [1, 3], 2, [2]), ([1, 2], [1, 2], 3, []), ([5], [], 1, [5])],
)
def test_torn_checkpoints_do_not_count_among_those_kept(
    steps: list[int], whole: list[int], kept: int, removed: list[int]
) -> None:
    assert superseded(steps, whole, kept) == removed
