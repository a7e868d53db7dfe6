"""A file where an option needs a folder."""

from pathlib import Path

import pytest

from finetune_api.handoff import ExitCode
from finetune_trainer.commands.check_data import Request, check_local_rows
from finetune_trainer.commands.run import RunOptions, run_jobs
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.errors import TrainerError
from finetune_trainer.sigterm import StopFlag


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("notes.txt")
    path.write_text("notes")
    return path


def test_the_rows_of_check_data_need_a_folder(file: Path) -> None:
    with pytest.raises(
        TrainerError, match=r"^--out notes.txt is a file; nothing was changed: name a folder$"
    ) as refused:
        check_local_rows(["rows.jsonl"], file, Request())
    assert refused.value.code is ExitCode.OUTPUT_CONFLICT
    with pytest.raises(TrainerError, match=r"^--out notes.txt/sub is below the file \S+notes.txt; nothing was changed"):
        check_local_rows(["rows.jsonl"], file / "sub", Request())
    assert file.read_text() == "notes"


@pytest.mark.parametrize("option", ["--output", "--workspace"])
@pytest.mark.parametrize("below", [".", "sub"])
def test_a_run_needs_folders(file: Path, option: str, below: str) -> None:
    places = {"--output": Path("out"), "--workspace": Path("work"), option: file / below}
    with pytest.raises(TrainerError, match=f"^{option} notes.txt.*: name a folder$") as refused:
        run_jobs(
            RunState(StopFlag()), Path("job.yaml"), places["--output"], RunOptions(), workspace=places["--workspace"]
        )
    assert refused.value.code is ExitCode.OUTPUT_CONFLICT
    assert not Path("out").exists()
