"""`finetune-trainer check-data`: what preflight would say of these rows, without a job."""

from pathlib import Path

from finetune_api.handoff import ExitCode
from finetune_api.spec import DatasetFormat, Objective
from finetune_trainer.data.check import check_files
from finetune_trainer.data.report import CheckOutput, print_summary
from finetune_trainer.data.rows import NamedPath, UnreadableFile
from finetune_trainer.data.summary import Summary
from finetune_trainer.errors import TrainerError
from finetune_trainer.labels import load_labeler


def check_data(
    files: list[Path],
    out: Path,
    *,
    data_format: DatasetFormat,
    objective: Objective,
    model: Path | None,
    max_length: int,
    max_rejected_percent: int,
) -> None:
    """Write the three files and print the counts; raises DatasetUnusable by the rules of a job."""
    summary = Summary()
    rows = check_files(
        [NamedPath(path, str(path)) for path in files],
        summary=summary,
        format=data_format.value,
        objective=objective.value,
        labeler=load_labeler(model, str(model)) if model else None,
        max_length=max_length,
    )
    try:
        with CheckOutput(out, summary) as output:
            for row in rows:
                output.write(row)
    except UnreadableFile as error:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, str(error)) from None
    print_summary(summary)
    if not summary.accepted:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, "no row can be used")
    if max_rejected_percent < 100 and summary.malformed_percent > max_rejected_percent:
        raise TrainerError(
            ExitCode.DATASET_UNUSABLE,
            f"{summary.malformed_percent:.1f} % of the rows are malformed, at most {max_rejected_percent} % is allowed",
        )
