"""Runs that SIGTERM ended: each writes a record to storage, and the next run reports all of them.

While the operator is down, a pod can start and end, and Kubernetes keeps no trace of it.
"""

import logging
import os
from datetime import UTC, datetime

from pydantic import ValidationError

from finetune_api.handoff import ENV_POD_NAME, ENV_POD_UID, Artifact, JobConfig
from finetune_api.runs import StoppedRun
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.protocol import Store, join_uri

logger = logging.getLogger(__name__)

MAX_REPORTED = 50


def record(
    config: JobConfig, storage: Store, began: datetime, last_step: int | None, resumed_from_step: int | None
) -> None:
    """Record that SIGTERM ended this run. If the store rejects the record, log a warning."""
    name, uid = os.environ.get(ENV_POD_NAME), os.environ.get(ENV_POD_UID)
    if not name or not uid:
        return  # not in a pod: the operator does not count this run
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
        storage.put(join_uri(_folder(config), f"{uid}.json"), run.model_dump_json(by_alias=True).encode())
    except TrainerError as error:
        logger.warning("cannot record that this run was stopped: %s", error.message)


def read(config: JobConfig, storage: Store) -> list[StoppedRun]:
    """Return this job's runs that SIGTERM ended, oldest first; at most the last fifty."""
    found = []
    for entry in storage.list(_folder(config)):
        data = storage.read(join_uri(_folder(config), entry.key))
        try:
            found.append(StoppedRun.model_validate_json(data or b""))
        except ValidationError:
            logger.warning("cannot read %s: skipped", join_uri(_folder(config), entry.key))
    return sorted(found, key=lambda run: run.end_time)[-MAX_REPORTED:]


def remove(config: JobConfig, storage: Store) -> None:
    """Remove the records of a completed job and of earlier jobs of its name."""
    uri = join_uri(config.output_key(), Artifact.STOPPED_RUNS)
    try:
        for entry in storage.list(uri):
            storage.remove(join_uri(uri, entry.key))
    except TrainerError as error:
        logger.warning("cannot remove %s: %s", uri, error.message)


def _folder(config: JobConfig) -> str:
    """Return the folder of this job's UID: a new job of the same name counts only its own runs."""
    return join_uri(join_uri(config.output_key(), Artifact.STOPPED_RUNS), config.uid)
