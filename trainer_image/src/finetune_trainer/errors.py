"""The failures that the trainer names: each carries its exit code and one line with the fix."""

from finetune_api.handoff import ExitCode
from finetune_api.status import DatasetStatus

MESSAGE_CHARACTERS = 1000


class TrainerError(Exception):
    """Ends the process with `code`; `message` is one line for people and never holds a secret.

    `dataset` has the counts of the rows where they are the cause.
    """

    def __init__(self, code: ExitCode, message: str, dataset: DatasetStatus | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.dataset = dataset


class Stopped(TrainerError):  # noqa: N818 - it says what happened
    """SIGTERM was seen: the process ends with 75, so that the operator runs it again."""

    def __init__(self, message: str = "stopped by SIGTERM") -> None:
        super().__init__(ExitCode.PREEMPTED, message)


class StorageDenied(TrainerError):  # noqa: N818 - it says what happened
    """Storage refused the credentials, or the bucket does not exist: another try would end the same."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.STORAGE_DENIED, message)


class StorageUnavailable(TrainerError):  # noqa: N818 - it says what happened
    """Storage could not be reached, or failed on its side, after retries."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.STORAGE_UNAVAILABLE, message)


class ObjectMissing(TrainerError):  # noqa: N818 - it says what happened
    """An object does not exist; the caller knows what that means and raises its own code where it matters."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.STORAGE_UNAVAILABLE, message)


def one_line(text: str, limit: int = MESSAGE_CHARACTERS) -> str:
    """The text on one line, cut in the middle where it is long, so that both cause and fix stay."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]} … {text[len(text) - half :]}"
