"""The trainer's named failures, each with its exit code and one line with the fix."""

import errno
import re
from collections.abc import Iterator, Sequence

from finetune_api.handoff import ExitCode
from finetune_api.names import Reason
from finetune_api.status import DatasetStatus

MESSAGE_CHARACTERS = 1000
# What cuBLAS, cuDNN, and CUDA (also below NCCL and Triton) write. bitsandbytes raises nothing: it ends the process.
OUT_OF_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "out of memory",
    "cudaErrorMemoryAllocation",
)


class TrainerError(Exception):
    """End the process with `code`; `message` is one line for users and never contains a secret.

    `dataset` has the row counts if they are the cause.
    """

    def __init__(self, code: ExitCode, message: str, dataset: DatasetStatus | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.dataset = dataset

    @property
    def reason(self) -> str:
        """Return the reason that the operator shows."""
        return self.code.reason


class WorkspaceFull(TrainerError):  # noqa: N818 - named after the event
    """The pod's scratch space is full; a volume there reports that to this process, and evicts no pod."""

    def __init__(self, cause: BaseException) -> None:
        fix = "raise resources.workspace.sizeLimit, with storageClassName on a full node, or use a modelCache"
        super().__init__(ExitCode.INTERNAL_ERROR, f"no space is left on the disk ({one_line(str(cause), 200)}): {fix}")

    @property
    def reason(self) -> str:
        """Return the reason of a pod that was evicted for its disk."""
        return Reason.WORKSPACE_FULL


class Stopped(TrainerError):  # noqa: N818 - named after the event
    """SIGTERM arrived: the process ends with 75, so that the operator runs it again."""

    def __init__(self, message: str = "stopped by SIGTERM") -> None:
        super().__init__(ExitCode.PREEMPTED, message)


class InvalidConfig(TrainerError):  # noqa: N818 - named after the event
    """The job's spec, or an option of the command, cannot work as it is; a retry would fail too."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.INVALID_CONFIG, message)


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


class ObjectReplaced(StorageUnavailable):
    """An object is not the one that was listed, so that a folder would be a mixture; only a new listing helps."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri} was replaced while its folder was read: do not write there while jobs read from it")


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
    for cause in causes(error):
        text = str(cause)
        is_of_a_gpu = isinstance(cause, RuntimeError) and _OF_A_GPU.search(text)
        if is_of_a_gpu and any(words in text.lower() for words in GPU_FAULTS):
            return TrainerError(ExitCode.GPU_FAULT, f"a GPU of this node is broken: {one_line(text, 300)}")
    return None


NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL = {
    "SafetensorError": re.compile(r"No space left on device|[Qq]uota exceeded"),
    # PyTorch does not name the cause. Its writer fails so if a block of the file was not written.
    "RuntimeError": re.compile(r"inline_container\.cc.*unexpected pos|PytorchStreamWriter failed writing"),
}
"""Texts of the errors of libraries that write files, by their type."""


def find_full_disk(error: BaseException) -> WorkspaceFull | None:
    """Return the failure if the error, or what caused it, is a full disk, else None."""
    for cause in causes(error):
        words = _FULL.get(type(cause).__name__)
        if (isinstance(cause, OSError) and cause.errno in NO_ROOM) or (words and words.search(str(cause))):
            return WorkspaceFull(cause)
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error, or one that it was raised from, is a failed allocation on the GPU.

    A failed allocation of host memory is not: a smaller micro-batch may not help, and the kernel's limit is another.
    """
    memory = (one for one in causes(error) if isinstance(one, RuntimeError))
    return any(phrase in str(one) for one in memory for phrase in OUT_OF_MEMORY)
