"""Runs that SIGTERM ended: each is written down in storage by itself, and the next run tells of all of them.

Between two looks of an operator that was away a pod can come and go, and Kubernetes keeps nothing of it.
"""

import logging
import os
from datetime import UTC, datetime

from pydantic import ValidationError

from finetune_api.handoff import ENV_POD_NAME, ENV_POD_UID, Artifact, JobConfig
from finetune_api.runs import StoppedRun
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.protocol import Storage, join

logger = logging.getLogger(__name__)

TOLD_MOST = 50


def record(
    config: JobConfig, storage: Storage, began: datetime, last_step: int | None, resumed_from_step: int | None
) -> None:
    """Leaves word of this run, which was told to stop; a store that does not take it keeps nobody from ending."""
    name, uid = os.environ.get(ENV_POD_NAME), os.environ.get(ENV_POD_UID)
    if not name or not uid:
        return  # no pod, and so nobody who counts
    run = StoppedRun(
        attempt=config.attempt,
        pod_name=name,
        pod_uid=uid,
        start_time=began,
        end_time=datetime.now(UTC),
        last_step=last_step,
        resumed_from_step=resumed_from_step,
    )
    try:
        storage.put(join(_folder(config), f"{uid}.json"), run.model_dump_json(by_alias=True).encode())
    except TrainerError as error:
        logger.warning("that this run was stopped is not written down: %s", error.message)


def read(config: JobConfig, storage: Storage) -> list[StoppedRun]:
    """The runs of this very job that SIGTERM ended, oldest first; at most the last fifty."""
    found = []
    for entry in storage.list(_folder(config)):
        data = storage.read(join(_folder(config), entry.key))
        try:
            found.append(StoppedRun.model_validate_json(data or b""))
        except ValidationError:
            logger.warning("%s cannot be read and is passed over", join(_folder(config), entry.key))
    return sorted(found, key=lambda run: run.end_time)[-TOLD_MOST:]


def remove(config: JobConfig, storage: Storage) -> None:
    """Removes what was written down for a job that is done, of earlier jobs of its name too."""
    uri = join(config.output_key(), Artifact.STOPPED_RUNS)
    try:
        for entry in storage.list(uri):
            storage.remove(join(uri, entry.key))
    except TrainerError as error:
        logger.warning("%s is left behind: %s", uri, error.message)


def _folder(config: JobConfig) -> str:
    """Apart for each FineTuneJob that had this name: a new one counts its own runs alone."""
    return join(join(config.output_key(), Artifact.STOPPED_RUNS), config.uid)
