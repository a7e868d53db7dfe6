"""The stores of a command on this machine: mapped folders, S3 and hubs with the credentials of this machine."""

# ruff: noqa: PLC0415 - the clients of S3 and hubs are imported only for their URIs

from collections.abc import Collection

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import ReadableStore, Store
from finetune_trainer.storage.routed import RoutedStore


def connect_here(spec: FineTuneJobSpec, stop: StopFlag, local: LocalStore, named: Collection[str] = ()) -> Store:
    """Return the job's stores with this machine's credentials: the manifest's Secrets exist only in a cluster.

    `named` are the servers of `--send-keys-to`.
    """

    def open_s3() -> Store:
        from finetune_trainer.storage.s3 import S3Store
        from finetune_trainer.storage.s3_client import connect_s3_here

        return S3Store(connect_s3_here(spec.storage, named))

    def open_hub() -> ReadableStore:
        from finetune_trainer.storage.hub.uris import connect_hub_here

        connection = connect_hub_here(spec, named)
        from finetune_trainer.storage.hub.storage import HubStore

        return HubStore(connection, stop=stop)

    return RoutedStore(open_s3, open_hub, local)
