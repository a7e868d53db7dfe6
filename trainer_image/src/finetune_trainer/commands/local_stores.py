"""The stores of a command on this machine: mapped folders, S3 and hubs with the credentials of this machine."""

# ruff: noqa: PLC0415 - the clients of S3 and hubs are imported only for their URIs

import os

from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec import Storage as StorageSpec
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import ReadableStore, Store
from finetune_trainer.storage.routed import RoutedStore


def connect_here(spec: FineTuneJobSpec, stop: StopFlag, local: LocalStore) -> Store:
    """Return the job's stores with this machine's credentials: the manifest's Secrets exist only in a cluster."""

    def open_s3() -> Store:
        from finetune_trainer.storage.s3 import S3Store
        from finetune_trainer.storage.s3_client import S3Connection

        storage = (spec.storage or StorageSpec()).model_copy(
            update={"credentials_secret_ref": None, "ca_secret_ref": None}
        )
        if storage.endpoint is None and os.environ.get("AWS_ENDPOINT_URL"):
            storage = storage.model_copy(update={"endpoint": os.environ["AWS_ENDPOINT_URL"]})
        return S3Store(S3Connection(storage))

    def open_hub() -> ReadableStore:
        from finetune_trainer.storage.hub.uris import connect_hub_here

        connection = connect_hub_here(spec)
        from finetune_trainer.storage.hub.storage import HubStore

        return HubStore(connection, stop=stop)

    return RoutedStore(open_s3, open_hub, local)
