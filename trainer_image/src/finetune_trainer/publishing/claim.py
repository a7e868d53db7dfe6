"""The claim on the output prefix: one prefix belongs to one job; files of other owners are never overwritten."""

from finetune_api.handoff import Artifact, ExitCode, JobConfig, Owner
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.protocol import ReadableStore, Store, join_uri

FIX = "choose another output.uri, or remove the existing objects"


def check_claim(config: JobConfig, storage: ReadableStore) -> bool:
    """Return whether the job owns the prefix, False if it is free; raise OutputConflict for another owner's.

    A prefix is free although jobs whose datasets were refused have left their rejected rows in it.
    """
    data = storage.read(owner_uri(config))
    if data is not None:
        _check_owner(config, data)
        return True
    found = storage.first(config.output_key(), besides=(f"{Artifact.REFUSED}/", f"{Artifact.STOPPED_RUNS}/"))
    if found:
        raise _conflict(config, f"contains {found.key} but no {Artifact.OWNER}; nothing was changed")
    return False


def claim_prefix(config: JobConfig, storage: Store) -> None:
    """Write `owner.json` atomically; raise OutputConflict if another job was faster.

    It is read before and after, so that the slower job also fails on a store that ignores `If-None-Match`.
    """
    data = storage.read(owner_uri(config))
    if data is None:
        owner = Owner(**config.identity())
        storage.put_if_absent(owner_uri(config), owner.model_dump_json(by_alias=True, indent=2).encode())
        data = storage.read(owner_uri(config)) or b""
    _check_owner(config, data)


def refused_uri(config: JobConfig) -> str:
    """Return where the rejected rows of a job are kept whose dataset is refused: no other job writes there."""
    return join_uri(config.output_key(), f"{Artifact.REFUSED}/{config.uid}/{Artifact.REJECTED}")


def owner_uri(config: JobConfig) -> str:
    """Return the URI of the claim."""
    return join_uri(config.output_key(), Artifact.OWNER)


def _check_owner(config: JobConfig, data: bytes) -> None:
    try:
        owner = Owner.model_validate_json(data)
    except ValueError:
        raise _conflict(config, f"has an {Artifact.OWNER} that cannot be read") from None
    if owner.is_of(config):
        return
    if (owner.namespace, owner.name) == (config.namespace, config.name):
        raise _conflict(config, f"belongs to an earlier FineTuneJob {owner.namespace}/{owner.name} with another spec")
    raise _conflict(config, f"belongs to the FineTuneJob {owner.namespace}/{owner.name}")


def _conflict(config: JobConfig, why: str) -> TrainerError:
    return TrainerError(ExitCode.OUTPUT_CONFLICT, f"{config.output_key()} {why}: {FIX}")
