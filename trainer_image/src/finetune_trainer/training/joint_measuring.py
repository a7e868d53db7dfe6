"""The attempts that measure in all processes together: a lost process ends its attempt, so few of them do.

A finished training must not depend on it: an object next to the checkpoints counts the attempts that began to measure
and did not end. SIGTERM does not count.
"""

import logging

from finetune_api.handoff import Artifact, JobConfig
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.distributed.rank_layout import MEASURING
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.protocol import Store, join_uri

logger = logging.getLogger(__name__)

MOST = 2
GIVEN_UP = b"given up"


def begin(run: RunContext) -> str:
    """Count an attempt; return why it must not be made, empty if it may."""
    limit = run.config.spec.backoff_limit
    found = run.storage.read(_uri(run.config)) or b"0"
    if found == GIVEN_UP:
        return "an earlier attempt could not measure the base in 16 bits in all processes together"
    if int(found) >= min(MOST, limit):
        return (
            f"{int(found)} attempts ended while all processes measured the base in 16 bits together, and with "
            f"backoffLimit {limit} no other one is risked"
        )
    run.storage.put(_uri(run.config), str(int(found) + 1).encode())
    (run.workspace / MEASURING).touch()
    return ""


def give_up(run: RunContext) -> None:
    """Let no later attempt measure together."""
    run.storage.put(_uri(run.config), GIVEN_UP)


def end(run: RunContext) -> None:
    """Forget all attempts, because this one has measured."""
    (run.workspace / MEASURING).unlink(missing_ok=True)
    try:
        run.storage.remove(_uri(run.config))
    except TrainerError as error:
        logger.warning("cannot remove %s: %s", _uri(run.config), error.message)


def forget(config: JobConfig, storage: Store) -> None:
    """Do not count the last attempt, which was interrupted; if the store rejects that, log a warning."""
    try:
        found = storage.read(_uri(config)) or b"0"
        if found == b"1":
            storage.remove(_uri(config))
        elif found not in {b"0", GIVEN_UP}:
            storage.put(_uri(config), str(int(found) - 1).encode())
    except TrainerError as error:
        logger.warning("cannot record that the measurement was interrupted: %s", error.message)


def _uri(config: JobConfig) -> str:
    return join_uri(join_uri(config.output_key(), Artifact.CHECKPOINTS), MEASURING)
