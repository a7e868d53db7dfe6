"""`finetune-trainer run`: the same preflight and the same training, on this machine, from a job's manifest."""

# ruff: noqa: PLC0415 - what is heavy is imported when it is needed

import logging
import os
from pathlib import Path

from finetune_api.handoff import Outcome, Report
from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec import Storage as StorageSpec
from finetune_trainer.local_storage import LocalStorage, parse_maps
from finetune_trainer.manifest_file import read_manifest
from finetune_trainer.preflight import preflight
from finetune_trainer.progress import Reporter
from finetune_trainer.routed_storage import RoutedStorage
from finetune_trainer.run_state import RunState
from finetune_trainer.stop import StopFlag
from finetune_trainer.storage import Storage

logger = logging.getLogger(__name__)


def run(state: RunState, manifest: Path, output: Path, maps: list[str], *, workspace: Path, uid: str) -> Report:
    """Check, train and publish into `output`, or where `--map` sends `output.uri`."""
    config = state.config = read_manifest(manifest, uid)
    folders = {config.output_key(): output} | parse_maps(maps)
    storage = LocalStorage(folders, elsewhere=lambda: _connect(config.spec, state.stop))
    reporter = state.reporter = Reporter(uid)
    checked = preflight(config, storage, workspace, reporter, state.stop)
    logger.info("%s: %s", checked.reason, checked.message)
    if checked.outcome is Outcome.ADOPTED:
        return checked
    state.stop.raise_if_set()
    from finetune_trainer.train import train

    ready = config.model_copy(update={"resolved": checked.resolved, "dataset": checked.dataset, "attempt": 1})
    state.config = ready
    return train(ready, storage, workspace, reporter, state.stop)


def _connect(spec: FineTuneJobSpec, stop: StopFlag) -> Storage:
    """The job's store and hub with this machine's own credentials, for the manifest's Secrets live in a cluster."""

    def connect_s3() -> Storage:
        from finetune_trainer.s3 import S3Storage
        from finetune_trainer.s3_client import Connection

        storage = (spec.storage or StorageSpec()).model_copy(
            update={"credentials_secret_ref": None, "ca_secret_ref": None}
        )
        if storage.endpoint is None and os.environ.get("AWS_ENDPOINT_URL"):
            storage = storage.model_copy(update={"endpoint": os.environ["AWS_ENDPOINT_URL"]})
        return S3Storage(Connection(storage))

    def connect_hub() -> Storage:
        from finetune_trainer.hub import connect_hub_here
        from finetune_trainer.hub_storage import HubStorage

        return HubStorage(connect_hub_here(spec), stop=stop)

    return RoutedStorage(connect_s3, connect_hub)
