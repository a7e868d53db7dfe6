"""Errors of the client, each with a message and a fix; any other exception is a bug."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_api.status import FineTuneJobStatus


class FineTuneError(Exception):
    """A failure with a message for the user and a fix."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        """Return the message, and the fix in a second line."""
        return f"{self.message}\n  {self.fix}" if self.fix else self.message


class WrongUse(FineTuneError):  # noqa: N818 - named after the failure
    """A call or a command line is invalid."""


class NotFound(FineTuneError):  # noqa: N818 - named after the failure
    """No such job, or no FineTuneJobs at all in this cluster."""


class Forbidden(FineTuneError):  # noqa: N818 - named after the failure
    """The API server denies the request, or does not accept the credentials."""


class Unreachable(FineTuneError):  # noqa: N818 - named after the failure
    """No cluster is configured, or it is unreachable."""


class Conflict(FineTuneError):  # noqa: N818 - named after the failure
    """A job of this name exists already, or another program owns a field that is applied."""


class InvalidJob(FineTuneError):  # noqa: N818 - named after the failure
    """The job is invalid: the message names each field, and what to write."""


class JobDeleted(FineTuneError):  # noqa: N818 - named after the failure
    """The job was deleted while it was watched, or another job has its name now."""


class WaitTimeout(FineTuneError, TimeoutError):  # noqa: N818 - named after the failure
    """The job has not ended in the time that the caller gave it; it runs on."""


class JobFailed(FineTuneError):  # noqa: N818 - named after the failure
    """The job has failed; `reason`, `message` and `fix` are those of its condition `Failed`."""

    def __init__(self, name: str, reason: str, message: str, fix: str, status: "FineTuneJobStatus") -> None:
        super().__init__(message, fix)
        self.name = name
        self.reason = reason
        """The cause in one word, for example `DatasetUnusable`."""
        self.status = status
        """All of the job's status."""

    def __str__(self) -> str:
        """Return name, reason, message and fix."""
        return f"{self.name} has failed ({self.reason}): {super().__str__()}"


def explain_unwritten(path: object, error: OSError) -> FineTuneError:
    """Return the error of a file that cannot be written on this machine."""
    fix = "choose another folder, or free space on its disk"
    return FineTuneError(f"{path} cannot be written: {error.strerror}", fix)
