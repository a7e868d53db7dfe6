"""Regular expressions from a spec, searched in what a model writes. No torch is needed.

A pattern may take exponential time, and Python's own `re` cannot be interrupted: `regex` reads the same syntax,
lookarounds and back-references included, and gives up after a time limit.
"""

import re
import warnings

import regex

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError

PATTERN_SECONDS = 0.5
"""Longest search in one answer; an answer of a thousand tokens takes a sound pattern less than a millisecond."""


def compile_pattern(pattern: str, name: str) -> "regex.Pattern[str]":
    """The pattern, or InvalidConfig that names the field. Python's own compiler has to accept it too, for `regex` also
    knows recursion, which takes memory without bound."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read otherwise
            re.compile(pattern)
            return regex.compile(pattern)
    except (re.error, regex.error, ValueError, OverflowError, RecursionError) as error:
        raise TrainerError(ExitCode.INVALID_CONFIG, f"{name} is no regular expression: {error}") from error


def is_in(pattern: "regex.Pattern[str]", text: str) -> bool:
    """Whether it is found; raises TimeoutError."""
    return pattern.search(text, timeout=PATTERN_SECONDS) is not None
