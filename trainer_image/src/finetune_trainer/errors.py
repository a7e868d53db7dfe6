"""The trainer's named failures, each with its exit code and one line with the fix."""

import re
from collections.abc import Sequence

from finetune_api.handoff import ExitCode
from finetune_api.status import DatasetStatus

MESSAGE_CHARACTERS = 1000


class TrainerError(Exception):
    """End the process with `code`; `message` is one line for users and never contains a secret.

    `dataset` has the row counts if they are the cause.
    """

    def __init__(self, code: ExitCode, message: str, dataset: DatasetStatus | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.dataset = dataset


class Stopped(TrainerError):  # noqa: N818 - named after the event
    """SIGTERM arrived: the process ends with 75, so that the operator runs it again."""

    def __init__(self, message: str = "stopped by SIGTERM") -> None:
        super().__init__(ExitCode.PREEMPTED, message)


class StorageDenied(TrainerError):  # noqa: N818 - named after the event
    """Storage refused the credentials, or the bucket does not exist; a retry would fail too."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.STORAGE_DENIED, message)


class KeysRefused(StorageDenied):
    """Storage refused the keys themselves; if they were valid before, new ones may be about to be mounted."""


class StorageUnavailable(TrainerError):  # noqa: N818 - named after the event
    """Storage could not be reached, or failed on its side, after retries."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.STORAGE_UNAVAILABLE, message)


class ObjectMissing(TrainerError):  # noqa: N818 - named after the event
    """An object does not exist; callers raise another code if they depend on it."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.STORAGE_UNAVAILABLE, message)


_OF_A_GPU = re.compile(r"\b(cuda|hip|nccl|rccl)\b", re.IGNORECASE)
GPU_FAULTS = (
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "hardware stack error",
    "gpu is lost",
    "fallen off the bus",
)
"""Texts of the CUDA runtime and driver for a broken device, in lower case; other faults may be the program's."""


def find_gpu_fault(error: BaseException) -> TrainerError | None:
    """Return the failure if the error, or what caused it, reports a broken GPU, else None.

    Only a RuntimeError of a GPU's library counts: the message of another one may have text of rows.
    """
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        is_of_a_gpu = isinstance(cause, RuntimeError) and _OF_A_GPU.search(text)
        if is_of_a_gpu and any(words in text.lower() for words in GPU_FAULTS):
            return TrainerError(ExitCode.GPU_FAULT, f"a GPU of this node is broken: {one_line(text, 300)}")
        cause = cause.__cause__ or cause.__context__
    return None


def name_some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names, and how many follow."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def one_line(text: str, limit: int = MESSAGE_CHARACTERS) -> str:
    """Return the text on one line; a long one is cut in the middle, so that both cause and fix remain."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]} … {text[len(text) - half :]}"
