"""The teacher of objective Distillation: checked and fetched as the base is, and compared with it; without torch."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from finetune_api.handoff import ExitCode, JobConfig
from finetune_api.spec import Model
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.files.base_model import ModelFacts, check_model, pin_model, read_config
from finetune_trainer.models.files.bound_model import fetch_as_checked
from finetune_trainer.models.files.cache import pin_as_checked
from finetune_trainer.models.trainable import require_trainable
from finetune_trainer.publishing.lineage import combined_sha256
from finetune_trainer.storage.hub.uris import pinned_commit, pinned_model_uri
from finetune_trainer.storage.protocol import OnBytes, ReadableStore
from finetune_trainer.tokenization.tokenizer import TokenizerFiles, TokenizerUnavailable, load_tokenizer_files

FIELD = "spec.distillation.teacher"
FAMILY = "use a teacher of the same family as the model, with the same tokenizer and the same vocab_size in config.json"


@dataclass(frozen=True, slots=True)
class CheckedTeacher:
    """The teacher as preflight found it: its commit is known, its text files are in the folder."""

    model: Model
    folder: Path
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class TeacherFiles:
    """The downloaded teacher, with the SHA-256 of each of its files."""

    model: Model
    folder: Path
    digests: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """One SHA-256 over all files."""
        return combined_sha256(self.digests)

    def lineage(self) -> dict[str, Any]:
        """Return the entry of `lineage.json`."""
        files = dict(sorted(self.digests.items()))
        return {"uri": self.model.uri, "revision": pinned_commit(self.model), "sha256": self.sha256, "files": files}


def check_teacher(
    config: JobConfig, storage: ReadableStore, directory: Path, base: Path, on_bytes: OnBytes | None = None
) -> CheckedTeacher | None:
    """Refuse a teacher that cannot be loaded or has other tokens than the model, whose text files are in `base`; None
    if the job has no teacher."""
    job = _with_teacher(config)
    if job is None:
        return None
    shutil.rmtree(directory, ignore_errors=True)
    job = pin_model(job, storage)
    teacher = job.spec.model
    facts = check_model(pinned_model_uri(teacher), storage, directory, on_bytes, field=FIELD)
    require_trainable(read_config(directory), config.spec.objective, field=FIELD)
    _require_same_tokens(teacher.uri, directory, config.spec.model.uri, base)
    return CheckedTeacher(teacher, directory, facts)


def fetch_teacher(
    config: JobConfig, checked: Mapping[str, Any], storage: ReadableStore, directory: Path, on_bytes: OnBytes
) -> tuple[Model, Path] | None:
    """Return the teacher that preflight checked, and its folder: in the cache, else in `directory`.

    Raises ModelUnavailable if it was changed since.
    """
    job = _with_teacher(config)
    if job is None:
        return None
    job = pin_as_checked(job, checked, storage)
    return job.spec.model, fetch_as_checked(job, checked, storage, directory, on_bytes)


def pin_teacher(config: JobConfig, model: Model) -> JobConfig:
    """Return the job with the teacher's commit, if it has one."""
    if config.spec.distillation is None or pinned_commit(model) is None:
        return config
    teacher = config.spec.distillation.teacher.model_copy(update={"revision": model.revision})
    block = config.spec.distillation.model_copy(update={"teacher": teacher})
    return config.with_spec(distillation=block)


def _with_teacher(config: JobConfig) -> JobConfig | None:
    """Return the job with the teacher in place of its model."""
    if config.spec.distillation is None:
        return None
    teacher = config.spec.distillation.teacher
    return config.with_spec(model=Model(uri=teacher.uri, revision=teacher.revision))


def _require_same_tokens(teacher: str, folder: Path, model: str, base: Path) -> None:
    """Refuse other tokens: the loss compares the probabilities of each id."""
    theirs, own = _read_tokenizer(teacher, folder), _read_tokenizer(model, base)
    if theirs.vocabulary != own.vocabulary:
        raise InvalidConfig(
            f"{FIELD} {teacher} has a vocab_size of {theirs.vocabulary}, and spec.model {model} one of "
            f"{own.vocabulary}, so that their probabilities cannot be compared: {FAMILY}"
        )
    there, here = _token_ids(theirs.tokenizer), _token_ids(own.tokenizer)
    if there == here:
        return
    other = min(one for one in there.keys() | here.keys() if there.get(one) != here.get(one))
    raise InvalidConfig(
        f"{FIELD} {teacher} has another vocabulary (SHA-256 {_digest(there)}) than spec.model {model} "
        f"({_digest(here)}): id {other} is {there.get(other)!r} there and {here.get(other)!r} here: {FAMILY}"
    )


def _read_tokenizer(uri: str, folder: Path) -> TokenizerFiles:
    try:
        return load_tokenizer_files(folder)
    except TokenizerUnavailable as error:
        message = f"{uri}: the tokenizer cannot be used: {error}"
        raise TrainerError(ExitCode.MODEL_UNAVAILABLE, message) from error


def _token_ids(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the text of each id, which several texts may share: then the first by alphabet."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return {number: token for token, number in sorted(vocabulary.items(), reverse=True)}


def _digest(tokens: Mapping[int, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(tokens.items())).encode()).hexdigest()
