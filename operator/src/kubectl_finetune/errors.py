"""Errors with a message and an exit code; any other exception is a bug and keeps its traceback."""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType


class ExitCode(IntEnum):
    """Exit codes of the process."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    FORBIDDEN = 4
    UNREACHABLE = 5

    @property
    def meaning(self) -> str:
        """The code in a few words, for `--help`."""
        return MEANINGS[self]


MEANINGS: Mapping[ExitCode, str] = MappingProxyType(
    {
        ExitCode.DONE: "success",
        ExitCode.FAILED: "failed or invalid",
        ExitCode.USAGE: "invalid usage",
        ExitCode.NOT_FOUND: "not found",
        ExitCode.FORBIDDEN: "forbidden",
        ExitCode.UNREACHABLE: "no cluster",
    }
)


class PluginError(Exception):
    """A failure with a message for the user and a fix."""

    code = ExitCode.FAILED

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class WrongUse(PluginError):  # noqa: N818 - named after the failure
    """The command line is invalid."""

    code = ExitCode.USAGE


class NotFound(PluginError):  # noqa: N818 - named after the failure
    """No such job, or no FineTuneJobs at all in this cluster."""

    code = ExitCode.NOT_FOUND


class Forbidden(PluginError):  # noqa: N818 - named after the failure
    """The API server denies the request, or does not accept the credentials."""

    code = ExitCode.FORBIDDEN


class Unreachable(PluginError):  # noqa: N818 - named after the failure
    """No cluster is configured, or it is unreachable."""

    code = ExitCode.UNREACHABLE
