"""The training processes of one pod: real processes, which end at once."""

from pathlib import Path

import pytest
from waiting import wait_until

from finetune_trainer.distributed.rank_layout import Layout
from finetune_trainer.distributed.rank_processes import RankProcesses

pytestmark = pytest.mark.process


def test_a_file_in_the_working_directory_is_not_imported_in_place_of_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory of a pod is its workspace, which holds files of the model's author."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("typer.py", "finetune_trainer.py", "json.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    ranks = RankProcesses(Layout(), tmp_path / "workspace", ["--no-such-option"])
    ranks.start()
    wait_until(lambda: not ranks.are_running())
    assert ranks.codes() == {0: 2}
    assert not (tmp_path / "imported").exists()
