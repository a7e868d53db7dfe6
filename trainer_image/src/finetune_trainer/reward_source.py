"""Where a reward model comes from: another job's result or a folder, fetched and checked; torch is not needed.

It is a whole model for sequence classification with one label, or a LoRA adapter that makes its base into one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from finetune_api.handoff import Artifact, ExitCode, JobConfig
from finetune_api.objectives import Objective
from finetune_trainer.base_model import CONFIG, PICKLE_SUFFIXES, is_model_file
from finetune_trainer.errors import TrainerError
from finetune_trainer.hub import SCHEME, commit_of, unpinned
from finetune_trainer.published_job import Published, find_published, look_for_published
from finetune_trainer.storage import OnBytes, Storage, join, sha256_file

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class RewardFolders:
    """The reward model on this machine: the model's folder and, where it is an adapter's base, the adapter's."""

    uri: str
    model: Path
    adapter: Path | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer and the template that it was trained with."""
        return self.adapter or self.model


def fetch_reward_model(
    config: JobConfig, storage: Storage, directory: Path, base: Path, on_bytes: OnBytes | None = None
) -> RewardFolders | None:
    """The job's reward model, or None where its rewards are computed; `base` is the folder of the policy's base."""
    source = config.spec.rlhf.reward_model if config.spec.rlhf else None
    if source is None:
        return None
    if source.uri is not None:
        given = storage.pin(source.uri.rstrip("/"))
        published = look_for_published(given, storage)
    else:
        given, published = "", _of_job(config, storage)
    uri, digests = (given, {}) if published is None else _published_folder(published)
    folder = directory / "reward"
    _download(uri, digests, storage, folder, on_bytes)
    if not (folder / ADAPTER_CONFIG).is_file():
        _check_model(uri, _read(uri, folder / CONFIG))
        return RewardFolders(uri, folder)
    wanted = _base_of(uri, _read(uri, folder / ADAPTER_CONFIG))
    if wanted == _policy_base(config):
        return RewardFolders(uri, base, folder)
    other = directory / "reward-base"
    if not storage.download_folder(wanted, other, on_bytes, accept=is_model_file):
        _refuse(uri, f"its base model {wanted} is not there")
    return RewardFolders(uri, other, folder)


def _of_job(config: JobConfig, storage: Storage) -> Published:
    job = config.reward_job
    if job is None:
        message = (
            "rlhf.rewardModel.jobRef needs the operator to find that job: name its result with rlhf.rewardModel.uri"
        )
        raise TrainerError(ExitCode.INVALID_CONFIG, message)
    if job.objective != Objective.REWARD_MODEL:
        message = f"rlhf.rewardModel.jobRef {job.name} has objective {job.objective}, and RewardModel is needed"
        raise TrainerError(ExitCode.INVALID_CONFIG, message)
    return find_published(job, storage)


def _published_folder(published: Published) -> tuple[str, dict[str, str]]:
    """The folder that holds the model: an adapter where there is one."""
    folders = [folder for folder in (Artifact.ADAPTER, Artifact.MERGED) if published.of_folder(folder)]
    if not folders:
        _refuse(published.uri, "the result holds no model")
    return join(published.uri, folders[0]), published.of_folder(folders[0])


def _download(uri: str, digests: Mapping[str, str], storage: Storage, folder: Path, on_bytes: OnBytes | None) -> None:
    paths = storage.download_folder(
        uri, folder, on_bytes, accept=lambda key: is_model_file(key) or key == ADAPTER_WEIGHTS
    )
    if not paths:
        _refuse(uri, "there is no file under this prefix: correct rlhf.rewardModel.uri")
    names = {path.name for path in paths}
    if not any(name.endswith(".safetensors") for name in names):
        pickled = any(entry.key.endswith(PICKLE_SUFFIXES) for entry in storage.list(uri))
        _refuse(uri, "the weights are only there as pickle files, which can run code when loaded" if pickled
                else "there are no weights in safetensors files")  # fmt: skip
    for name in sorted(names & digests.keys()):
        if sha256_file(folder / name) != digests[name]:
            _refuse(uri, f"{name} has another content than its SHA-256 in the manifest")


def _check_model(uri: str, config: Mapping[str, Any]) -> None:
    kind = str((config.get("architectures") or ["unknown"])[0])
    labels = len(config.get("id2label") or {0: "", 1: ""})
    if not kind.endswith("ForSequenceClassification") or labels != 1:
        _refuse(
            uri,
            f"it is a {kind} with {labels} labels, and a reward model is one for sequence classification with one "
            "label: train one with objective RewardModel",
        )


def _base_of(uri: str, config: Mapping[str, Any]) -> str:
    """Where the adapter's base lies; an adapter that gives no score is refused."""
    if config.get("peft_type") != "LORA" or config.get("task_type") != "SEQ_CLS":
        _refuse(
            uri,
            f"the adapter is of type {config.get('peft_type')} for task {config.get('task_type')}, and a reward model "
            "is a LORA adapter for SEQ_CLS: train one with objective RewardModel",
        )
    named = str(config.get("base_model_name_or_path") or "").rstrip("/")
    if not named:
        _refuse(uri, f"its {ADAPTER_CONFIG} names no base model")
    return _at(named if "://" in named else f"{SCHEME}{named}", config.get("revision"))


def _policy_base(config: JobConfig) -> str:
    return _at(config.spec.model.uri.rstrip("/"), config.spec.model.revision)


def _at(uri: str, revision: object) -> str:
    """A hub's model by its commit, any other by its URI alone."""
    if not uri.startswith(SCHEME) or commit_of(uri) or not revision:
        return uri
    return f"{unpinned(uri)}@{revision}"


def _read(uri: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        _refuse(uri, f"there is no {path.name}, or it is not a JSON object")
    return content


def _refuse(uri: str, why: str) -> NoReturn:
    raise TrainerError(ExitCode.MODEL_UNAVAILABLE, f"{uri}: {why}")
