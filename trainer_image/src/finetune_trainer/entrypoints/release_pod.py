"""The pod of a release: configuration from a mounted file, one report in the termination message."""

# ruff: noqa: PLC0415 - what is heavy is imported when it is needed

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from finetune_api import handoff
from finetune_api.release import ReleaseConfig, ReleaseOutcome, ReleaseReport
from finetune_trainer.entrypoints.pod import require_digest
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.errors import InvalidConfig, TrainerError, one_line

logger = logging.getLogger("finetune_trainer")


def release_command(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="The release's configuration (JSON), as the operator mounts it.")] = Path(
        handoff.CONFIG_DIR
    )
    / handoff.CONFIG_FILE,
    workspace: Annotated[Path, typer.Option(help="Scratch space.")] = Path(handoff.WORKSPACE_DIR),
    volume: Annotated[Path, typer.Option(help="Where the adapters' volume is mounted.")] = Path(
        handoff.MODEL_CACHE_DIR
    ),
    termination_log: Annotated[Path, typer.Option(help="File for the report (JSON), if it exists.")] = Path(
        handoff.TERMINATION_LOG
    ),
) -> None:
    """Verify a published result and let a server answer with it. Runs in the pod of a FineTuneRelease, without a GPU.

    Exits with 0 if the release is decided, also if it is refused, held or rolled back.
    """
    state: RunState = context.obj
    read = _read_config(config)
    report, code = _release(read, state, workspace, volume)
    logger.info("%s: %s", report.outcome, report.message)
    if termination_log.exists():
        termination_log.write_text(to_termination_message(report), encoding="ascii")
    raise typer.Exit(code)


def _release(
    config: ReleaseConfig, state: RunState, workspace: Path, volume: Path
) -> tuple[ReleaseReport, handoff.ExitCode]:
    from finetune_trainer.release.candidate import report
    from finetune_trainer.release.release import release
    from finetune_trainer.release.vllm_server import ServerAwayError, ServerLostError
    from finetune_trainer.storage.s3 import S3Store
    from finetune_trainer.storage.s3_client import connect_s3

    try:
        state.stop.raise_if_set()
        storage = S3Store(connect_s3(config.storage), 0.0, state.stop)
        secrets, check = Path(handoff.SERVER_DIR), state.stop.raise_if_set
        found = release(config, storage, workspace, volume, secrets=secrets, check=check)
        return found, handoff.ExitCode.OK
    except ServerLostError as lost:
        message = f"{lost}; what answered before keeps the name"
        # One that starts is waited for until the Job's deadline: this end does not count.
        code = handoff.ExitCode.PREEMPTED if isinstance(lost, ServerAwayError) else handoff.ExitCode.STORAGE_UNAVAILABLE
        return report(config, ReleaseOutcome.FAILED, message), code
    except TrainerError as error:
        return report(config, ReleaseOutcome.FAILED, one_line(error.message)), error.code
    except OSError as error:
        message = f"{error.filename or workspace} of the release's pod: {error.strerror or error}"
        return report(config, ReleaseOutcome.FAILED, one_line(message)), handoff.ExitCode.STORAGE_UNAVAILABLE


def to_termination_message(report: ReleaseReport) -> str:
    """Return JSON of at most 4,096 bytes; the largest blocks are left out until it fits."""
    data = report.to_wire()
    for dropped in ("", "replaced", "comparison", "answering"):
        data.pop(dropped, None)
        text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
        if len(text) <= handoff.TERMINATION_LIMIT_BYTES:
            return text
    return json.dumps(data | {"message": ""}, separators=(",", ":"))


def _read_config(path: Path) -> ReleaseConfig:
    try:
        data = path.read_bytes()
        require_digest(path, data)
        return ReleaseConfig.model_validate_json(data)
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidConfig(f"{path}: {where}: {first['msg']}") from None
