from typing import Any

import pytest

from finetune_api.handoff import Artifact, ExitCode, Owner
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.claim import check_claim, claim_prefix, owner_uri
from finetune_trainer.storage.protocol import Store


class Careless:
    """The storage, but conditional writes are taken whatever lies there, as some stores do."""

    def __init__(self, storage: Store) -> None:
        self._storage = storage

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._storage, attribute)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        self._storage.put(uri, data)
        return True


def refusal(config: Any, storage: Any) -> str:
    with pytest.raises(TrainerError) as caught:
        claim_prefix(config, storage)
    assert caught.value.code is ExitCode.OUTPUT_CONFLICT
    return caught.value.message


def test_a_claim_is_kept_by_a_store_that_ignores_conditions(world: Any, job_config: Any) -> None:
    storage = Careless(world.storage)
    claim_prefix(world.config, storage)
    assert "belongs to the FineTuneJob team/job" in refusal(job_config(name="other"), storage)
    claim_prefix(world.config, storage)
    assert Owner.model_validate_json((world.out / Artifact.OWNER).read_bytes()).name == "job"


def test_of_two_claims_at_once_the_overwritten_one_notices(world: Any, job_config: Any) -> None:
    other = job_config(name="other")

    class Overtaken(Careless):
        def put_if_absent(self, uri: str, data: bytes) -> bool:
            self._storage.put(uri, data)
            claim_of_the_other = Owner(namespace="team", name="other", uid="u", config_sha256=other.config_sha256)
            self._storage.put(uri, claim_of_the_other.model_dump_json(by_alias=True).encode())
            return True

    assert "belongs to the FineTuneJob team/other" in refusal(world.config, Overtaken(world.storage))


def test_the_claim_of_a_job_is_its_own_again_after_it_was_recreated(world: Any, job_config: Any) -> None:
    assert not check_claim(world.config, world.storage)
    claim_prefix(world.config, world.storage)
    assert check_claim(job_config(uid="uid-2"), world.storage)
    assert owner_uri(world.config) == "s3://bucket/out/owner.json"


def test_a_prefix_with_files_and_no_claim_is_taken(world: Any) -> None:
    world.storage.put("s3://bucket/out/notes.txt", b"mine")
    with pytest.raises(TrainerError, match=r"contains notes\.txt but no owner\.json; nothing was changed") as caught:
        check_claim(world.config, world.storage)
    assert caught.value.code is ExitCode.OUTPUT_CONFLICT


def test_a_free_prefix_is_not_the_jobs_yet(world: Any) -> None:
    assert check_claim(world.config, world.storage) is False


def test_the_claim_of_another_job_is_refused_before_anything_is_written(world: Any, job_config: Any) -> None:
    claim_prefix(world.config, world.storage)
    with pytest.raises(TrainerError, match="belongs to the FineTuneJob team/job: choose another"):
        check_claim(job_config(name="other"), world.storage)
    with pytest.raises(TrainerError, match="belongs to an earlier FineTuneJob team/job with another spec"):
        check_claim(job_config({"hyperparameters": {"maxSteps": 3}}), world.storage)


def test_a_claim_that_cannot_be_read_is_a_conflict(world: Any) -> None:
    world.storage.put(owner_uri(world.config), b"{}")
    assert "has an owner.json that cannot be read" in refusal(world.config, world.storage)


def test_a_claim_that_vanishes_while_it_is_made_is_a_conflict(world: Any) -> None:
    class Forgetful(Careless):
        def put_if_absent(self, uri: str, data: bytes) -> bool:
            return True

    assert "has an owner.json that cannot be read" in refusal(world.config, Forgetful(world.storage))


def test_the_claim_is_indented_for_readers(world: Any) -> None:
    claim_prefix(world.config, world.storage)
    text = (world.out / Artifact.OWNER).read_text()
    assert text.startswith('{\n  "')
    assert '"configSHA256"' in text
