"""Which of several exit codes tells most of why the processes of a pod ended."""

from collections.abc import Iterable

from finetune_api.handoff import TERMINAL_EXIT_CODES, ExitCode

KILLED = 137
SIGNALLED = 128

ORDER: tuple[int, ...] = (*sorted(TERMINAL_EXIT_CODES), ExitCode.STORAGE_UNAVAILABLE, KILLED)
"""Most specific first; then whatever else is not in the table, 70 among it, then 75, and 0 only where all are 0."""


def most_specific(codes: Iterable[int]) -> int:
    """The code that the pod ends with: what will not pass by itself before what may, and a cause before its echo."""
    return min(codes, key=specificity)


def specificity(code: int) -> int:
    """The code's place in the order; smaller is more specific."""
    match code:
        case _ if code in ORDER:
            return ORDER.index(code)
        case ExitCode.OK:
            return len(ORDER) + 2
        case ExitCode.PREEMPTED:
            return len(ORDER) + 1
        case _:
            return len(ORDER)


def exit_code(returncode: int) -> int:
    """What a shell would call it: a process that died of a signal has 128 and the signal's number."""
    return returncode if returncode >= 0 else SIGNALLED - returncode
