"""Failures that have a sentence and an exit code; everything else is a bug and keeps its traceback."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process ends with."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    FORBIDDEN = 4
    UNREACHABLE = 5


class PluginError(Exception):
    """A failure to tell: what is wrong, and what to do about it."""

    code = ExitCode.FAILED

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class WrongUse(PluginError):  # noqa: N818 - what happened
    """The command line cannot be meant like this."""

    code = ExitCode.USAGE


class NotFound(PluginError):  # noqa: N818 - what happened
    """No such job, or no FineTuneJobs at all in this cluster."""

    code = ExitCode.NOT_FOUND


class Forbidden(PluginError):  # noqa: N818 - what happened
    """The API server knows the user and refuses, or does not know the user."""

    code = ExitCode.FORBIDDEN


class Unreachable(PluginError):  # noqa: N818 - what happened
    """No cluster is configured, or it does not answer."""

    code = ExitCode.UNREACHABLE
