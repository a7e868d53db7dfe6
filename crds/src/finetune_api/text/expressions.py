"""Regular expressions of a job, in the syntax of Python."""

import re
import warnings


def find_expression_fault(pattern: str) -> str:
    """Return why Python cannot compile a regular expression; empty if it can."""
    try:
        _compile(pattern)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        return str(error) or type(error).__name__
    return ""


def count_groups(pattern: str) -> int:
    """Return the number of groups of an expression that Python can compile."""
    return _compile(pattern).groups


def _compile(pattern: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about syntax that a later Python may interpret differently
        return re.compile(pattern)
