"""The job's reward model: found in another job's result or a folder, checked and fetched; without torch.

It is a whole model for sequence classification with one label, or a LoRA adapter that turns its base into one.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from finetune_api.blocks import MODEL_URI, MODEL_URI_MESSAGE, STORAGE_SCHEME, is_under
from finetune_api.handoff import ADAPTER_WEIGHTS, Artifact, JobConfig
from finetune_api.objectives import Objective
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.files.base_model import (
    ADAPTER_CONFIG,
    CONFIG,
    PICKLE_SUFFIXES,
    TOKENIZER,
    check_model,
    is_model_file,
    is_text_file,
    is_weight_file,
    list_model_files,
    name_architecture,
    read_header,
    refuse,
)
from finetune_trainer.models.files.bound_model import digests_of, require_listed
from finetune_trainer.publishing.parent_result import ParentResult, find_result_at, read_parent_result
from finetune_trainer.storage.hub.uris import SCHEME, parse_commit, strip_commit
from finetune_trainer.storage.protocol import Entry, OnBytes, ReadableStore, join_uri, sha256_file
from finetune_trainer.tokenization.labeler import load_labeler

SCORE = "score"
"""The head's name in all of transformers' decoders for sequence classification."""
NO_FILE = "there is no file under this prefix: correct rlhf.rewardModel.uri"


@dataclass(frozen=True, slots=True)
class RewardFolders:
    """The downloaded reward model: the folder of the model and, if that is an adapter's base, of the adapter.

    `base_uri` is that of the adapter's base if it is not the policy's.
    """

    uri: str
    model: Path
    adapter: Path | None = None
    base_uri: str | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder with tokenizer and template of the reward model; an adapter may have none of its own."""
        return self.adapter if self.adapter and (self.adapter / TOKENIZER).is_file() else self.model


def check_reward_model(
    config: JobConfig, storage: ReadableStore, directory: Path, base: Path, on_bytes: OnBytes | None = None
) -> RewardFolders | None:
    """Refuse a reward model that cannot be loaded or gives no score; only the headers of its weights are read.

    `base` is the folder with the text files of the policy's base.
    """
    found = _locate(config, storage)
    if found is None:
        return None
    uri, _ = found
    shutil.rmtree(directory, ignore_errors=True)
    entries = {entry.key: entry for entry in storage.list(uri)}
    if not entries:
        refuse(uri, NO_FILE)
    if ADAPTER_CONFIG in entries:
        storage.download_folder(uri, directory, on_bytes, accept=is_text_file)
        wanted = _find_base(uri, _read(uri, directory / ADAPTER_CONFIG), config)
        _check_adapter(uri, entries, storage, on_bytes)
        own = None if wanted == _policy_base(config) else wanted
        if own:
            base = directory / "base"
            _check_base(uri, own, base, storage, on_bytes)
        folders = RewardFolders(uri, base, directory, own)
    else:
        folders = _check_whole(uri, entries, storage, directory, on_bytes)
    load_labeler(folders.tokenizer, uri)
    return folders


def describe_reward_model(reward: RewardFolders, storage: ReadableStore) -> dict[str, dict[str, str]]:
    """Return the entry for preflight's summary: for each folder what storage lists (SHA-256, or the ETag)."""
    found = {reward.uri: digests_of(_list_own(reward.uri, storage))}
    if reward.base_uri:
        found[reward.base_uri] = digests_of(list_model_files(reward.base_uri, storage))
    return found


def fetch_reward_model(
    config: JobConfig,
    storage: ReadableStore,
    directory: Path,
    base: Path,
    on_bytes: OnBytes | None = None,
    *,
    checked: Mapping[str, Mapping[str, str]],
) -> RewardFolders | None:
    """Download the reward model; None if rewards are computed. `base` is the folder of the policy's base.

    Raises ModelUnavailable if storage lists other files than preflight `checked`.
    """
    found = _locate(config, storage)
    if found is None:
        return None
    uri, digests = found
    folder, other = directory / "reward", directory / "reward-base"
    for stale in (folder, other):
        shutil.rmtree(stale, ignore_errors=True)
    entries = _list_own(uri, storage)
    if checked:
        require_listed(uri, checked.get(uri, {}), entries)
    storage.download_listed(uri, entries, folder, on_bytes)
    _check_files(uri, folder, digests, storage)
    if not (folder / ADAPTER_CONFIG).is_file():
        _check_kind(uri, _read(uri, folder / CONFIG))
        return RewardFolders(uri, folder)
    wanted = _find_base(uri, _read(uri, folder / ADAPTER_CONFIG), config)
    if wanted == _policy_base(config):
        return RewardFolders(uri, base, folder)
    entries = list_model_files(wanted, storage)
    if not entries:
        refuse(uri, f"its base model {wanted} does not exist")
    if checked:
        require_listed(wanted, checked.get(wanted, {}), entries)
    storage.download_listed(wanted, entries, other, on_bytes)
    return RewardFolders(uri, other, folder, wanted)


def _locate(config: JobConfig, storage: ReadableStore) -> tuple[str, dict[str, str]] | None:
    """Return the folder in storage, and its files' digests from a manifest; None if rewards are computed."""
    source = config.spec.rlhf.reward_model if config.spec.rlhf else None
    if source is None:
        return None
    if source.uri is None:
        return _published_folder(_find_job_result(config, storage))
    given = storage.pin(source.uri.rstrip("/"))
    published = find_result_at(given, storage)
    return _published_folder(published) if published else (given, {})


def _check_whole(
    uri: str, entries: Mapping[str, Entry], storage: ReadableStore, directory: Path, on_bytes: OnBytes | None
) -> RewardFolders:
    if CONFIG in entries:
        directory.mkdir(parents=True)
        storage.download(join_uri(uri, CONFIG), directory / CONFIG, on_bytes)
        _check_kind(uri, _read(uri, directory / CONFIG))
    check_model(uri, storage, directory, on_bytes)
    tensors: dict[str, tuple[int, ...]] = {}
    for entry in filter(lambda entry: is_weight_file(entry.key), entries.values()):
        tensors |= read_header(uri, entry, storage, on_bytes)
    _check_head(uri, tensors)
    return RewardFolders(uri, directory)


def _check_adapter(uri: str, entries: Mapping[str, Entry], storage: ReadableStore, on_bytes: OnBytes | None) -> None:
    if ADAPTER_WEIGHTS not in entries:
        _refuse_weights(uri, entries)
    _check_head(uri, read_header(uri, entries[ADAPTER_WEIGHTS], storage, on_bytes))


def _check_base(uri: str, base: str, directory: Path, storage: ReadableStore, on_bytes: OnBytes | None) -> None:
    try:
        check_model(base, storage, directory, on_bytes)
    except TrainerError as error:
        raise TrainerError(error.code, f"the base of the reward model {uri}: {error.message}") from error


def _check_head(uri: str, tensors: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a model without its head, which would be replaced by a random one."""
    heads = [size for name, size in tensors.items() if name.removesuffix(".weight").rpartition(".")[2] == SCORE]
    if not heads:
        refuse(uri, f"its weights have no {SCORE}.weight, the scoring head")
    if heads[0][0] != 1:
        refuse(uri, f"its head has {heads[0][0]} outputs, but a reward model has one")


def _find_job_result(config: JobConfig, storage: ReadableStore) -> ParentResult:
    job = config.reward_job
    if job is None:
        message = (
            "rlhf.rewardModel.jobRef needs the operator to find that job: name its result with rlhf.rewardModel.uri"
        )
        raise InvalidConfig(message)
    if job.objective != Objective.REWARD_MODEL:
        message = f"rlhf.rewardModel.jobRef {job.name} has objective {job.objective}, but RewardModel is needed"
        raise InvalidConfig(message)
    return read_parent_result(job, storage)


def _published_folder(published: ParentResult) -> tuple[str, dict[str, str]]:
    """Return the folder with the model (the adapter if there is one) and its digests."""
    folders = [folder for folder in (Artifact.ADAPTER, Artifact.MERGED) if published.folder_digests(folder)]
    if not folders:
        refuse(published.uri, "the result contains no model")
    return join_uri(published.uri, folders[0]), published.folder_digests(folders[0])


def _list_own(uri: str, storage: ReadableStore) -> list[Entry]:
    """Return the files of a reward model, which may be an adapter."""
    return [
        entry
        for entry in storage.list(uri)
        if is_model_file(entry.key) or entry.key in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    ]


def _check_files(uri: str, folder: Path, digests: Mapping[str, str], storage: ReadableStore) -> None:
    """Refuse a downloaded reward model without safe weights, or with other files than its manifest names."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    if not names:
        refuse(uri, NO_FILE)
    if not any(name.endswith(".safetensors") for name in names):
        _refuse_weights(uri, {entry.key: entry for entry in storage.list(uri)})
    for name in sorted(names & digests.keys()):
        if sha256_file(folder / name) != digests[name]:
            refuse(uri, f"{name} does not match its SHA-256 in the manifest")


def _refuse_weights(uri: str, keys: Iterable[str]) -> NoReturn:
    if any(key.endswith(PICKLE_SUFFIXES) for key in keys):
        refuse(
            uri,
            "the weights exist only as pickle files, which can run code when loaded: save them again with "
            "save_pretrained(…)",
        )
    refuse(uri, "there are no weights in safetensors files")


def _check_kind(uri: str, config: Mapping[str, Any]) -> None:
    kind = name_architecture(config)
    labels = len(config.get("id2label") or {0: "", 1: ""})  # two is the default of transformers
    if not kind.endswith("ForSequenceClassification") or labels != 1:
        refuse(
            uri,
            f"it is a {kind} with {labels} labels, but a reward model is one for sequence classification with one "
            "label: train one with objective RewardModel",
        )


def _find_base(uri: str, config: Mapping[str, Any], job: JobConfig) -> str:
    """Return the URI of the adapter's base; an adapter that gives no score is refused, and a base that the job itself
    may not name."""
    if config.get("peft_type") != "LORA" or config.get("task_type") != "SEQ_CLS":
        refuse(
            uri,
            f"the adapter is of type {config.get('peft_type')} for task {config.get('task_type')}, but a reward model "
            "is a LORA adapter for SEQ_CLS: train one with objective RewardModel",
        )
    named = str(config.get("base_model_name_or_path") or "").rstrip("/")
    if not named:
        refuse(uri, f"its {ADAPTER_CONFIG} names no base model")
    base = named if "://" in named else f"{SCHEME}{named}"
    if not MODEL_URI.fullmatch(base.partition("@")[0]):
        refuse(uri, f"its {ADAPTER_CONFIG} names the base model {named[:200]!r}, which {MODEL_URI_MESSAGE}")
    prefixes = job.storage_prefixes or []
    if prefixes and base.startswith(STORAGE_SCHEME) and not is_under(f"{base}/", prefixes):
        named = f"its {ADAPTER_CONFIG} names the base model {base}, which this namespace may not read"
        refuse(uri, f"{named}: use a reward model of a base under {' or '.join(prefixes)}")
    if base.startswith(SCHEME) and not job.has_hub:
        named = f"its {ADAPTER_CONFIG} names the base model {base}, and jobs may not use that hub"
        refuse(uri, f"{named}: name another one in hub.endpoint, or use a reward model of a base in storage")
    return _with_revision(base, config.get("revision"))


def _policy_base(config: JobConfig) -> str:
    return _with_revision(config.spec.model.uri.rstrip("/"), config.spec.model.revision)


def _with_revision(uri: str, revision: object) -> str:
    """Return the URI with the revision, if it is a hub's model without a commit."""
    if not uri.startswith(SCHEME) or parse_commit(uri) or not revision:
        return uri
    return f"{strip_commit(uri)}@{revision}"


def _read(uri: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        refuse(uri, f"there is no {path.name}, or it is not a JSON object")
    return content
