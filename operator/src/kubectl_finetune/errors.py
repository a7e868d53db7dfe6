"""The exit codes of the plugin, and the code of each error."""

from collections.abc import Mapping
from enum import IntEnum

from finetune_client.errors import FineTuneError, Forbidden, NotFound, Unreachable, WrongUse


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


MEANINGS: Mapping[ExitCode, str] = {
    ExitCode.DONE: "success",
    ExitCode.FAILED: "failed or invalid",
    ExitCode.USAGE: "invalid usage",
    ExitCode.NOT_FOUND: "not found",
    ExitCode.FORBIDDEN: "forbidden",
    ExitCode.UNREACHABLE: "no cluster",
}
CODES: Mapping[type[FineTuneError], ExitCode] = {
    WrongUse: ExitCode.USAGE,
    NotFound: ExitCode.NOT_FOUND,
    Forbidden: ExitCode.FORBIDDEN,
    Unreachable: ExitCode.UNREACHABLE,
}


def exit_code_of(error: FineTuneError) -> ExitCode:
    """Return the exit code of a command that ended with this error."""
    return next((code for kind, code in CODES.items() if isinstance(error, kind)), ExitCode.FAILED)
