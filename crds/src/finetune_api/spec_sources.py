"""What a job reads: every URI of its spec, with its path there, and the Secret of the token for it on a hub."""

from typing import NamedTuple

from finetune_api.blocks import SecretRef
from finetune_api.handoff import HubRole
from finetune_api.spec import FineTuneJobSpec


class SpecSource(NamedTuple):
    """One source of a job; `place` is its path in the spec, for example `dataset.train.sources[0]`."""

    place: str
    uri: str
    is_folder: bool
    role: HubRole | None = None
    """What its token is for, if it is on a hub; None for a source without a field for a token."""
    secret: SecretRef | None = None


def list_sources(spec: FineTuneJobSpec) -> list[SpecSource]:
    """Return the job's sources; those that another job publishes are not among them."""
    dataset, validation, ability = spec.dataset, spec.dataset.validation, spec.evaluation.ability
    adapter, reward = spec.tuning.initial_adapter, spec.rlhf.reward_model if spec.rlhf else None
    teacher, rows = spec.distillation.teacher if spec.distillation else None, dataset.train.credentials_secret_ref
    found = [SpecSource("model", spec.model.uri, True, HubRole.MODEL, spec.model.credentials_secret_ref)]
    for place, one in dataset.training_sources().items():
        found.append(SpecSource(place, one.uri, False, HubRole.TRAIN, rows))
    if validation:
        secret = validation.credentials_secret_ref
        found.append(SpecSource("dataset.validation", validation.uri, False, HubRole.VALIDATION, secret))
    if adapter and adapter.uri:
        found.append(SpecSource("tuning.initialAdapter", adapter.uri, True))
    if reward and reward.uri:
        found.append(SpecSource("rlhf.rewardModel", reward.uri, True))
    if teacher:
        secret = teacher.credentials_secret_ref
        found.append(SpecSource("distillation.teacher", teacher.uri, True, HubRole.TEACHER, secret))
    if ability:
        found.append(SpecSource("evaluation.ability", ability.uri, False))
    return found
