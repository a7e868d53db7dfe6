"""Ranks and alphas of single modules, by PEFT's patterns of their names, matched in bounded time; without torch.

PEFT, and vLLM with it, compare names with Python's own expressions, which have no limit of time: what could take long
is refused by its form.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

from finetune_api.spec import Lora
from finetune_api.status import Resolved
from finetune_api.tuning import UNBOUNDED
from finetune_trainer.errors import InvalidConfig

RANKS, ALPHAS = "rankPattern", "alphaPattern"
MOST_PATTERNS, MOST_MATCHES = 64, 1 << 16
V = TypeVar("V")


def find_value(patterns: Mapping[str, V] | None, module: str, usual: V) -> V:
    """Return the value of the first pattern that matches the module's name, as PEFT does; raises InvalidConfig."""
    return next((value for pattern, value in (patterns or {}).items() if matches(pattern, module)), usual)


@lru_cache(maxsize=MOST_MATCHES)
def matches(pattern: str, module: str) -> bool:
    """Return whether the pattern matches the end of the module's name, from a dot on; raises InvalidConfig."""
    return _compile(pattern).match(module) is not None


@lru_cache(maxsize=MOST_PATTERNS)
def _compile(pattern: str) -> re.Pattern[str]:
    """Compile a pattern as PEFT does; alone, it must be complete too: PEFT puts it in parentheses."""
    name, within = f"the pattern {pattern} of an adapter's modules", rf"(.*\.)?({pattern})$"
    if re.search(UNBOUNDED, pattern):
        raise InvalidConfig(f"{name} repeats a group, or has more than four repetitions (*, + or {{}}): simplify it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about syntax that a later Python may interpret differently
            re.compile(pattern)
            return re.compile(within)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise InvalidConfig(f"{name} is not a regular expression: {error}") from None


def require_expressions(lora: Lora | Resolved) -> None:
    """Refuse patterns that are no regular expressions, or could take long, before PEFT compares them."""
    for _, patterns in _fields(lora):
        for pattern in patterns:
            _compile(pattern)


def require_one_value(lora: Lora | Resolved, modules: Iterable[str], owner: str = "tuning.lora.") -> None:
    """Refuse patterns that give one module two values: which is the first differs, because a map has no order."""
    names = list(modules)
    for field, patterns in _fields(lora):
        for module in names:
            found = [pattern for pattern in patterns if matches(pattern, module)]
            other = [pattern for pattern in found if patterns[pattern] != patterns[found[0]]]
            if other:
                raise InvalidConfig(
                    f"{owner}{field} has {patterns[found[0]]} for {found[0]} and {patterns[other[0]]} for "
                    f"{other[0]}, and both match {module}: change the patterns so that one of them matches it"
                )


def require_matches(lora: Lora | Resolved, modules: Iterable[str]) -> None:
    """Refuse a pattern that matches none of the modules with an adapter: it is misspelt, or names others."""
    names = list(modules)
    for field, patterns in _fields(lora):
        for pattern in patterns:
            if not any(matches(pattern, module) for module in names):
                raise InvalidConfig(
                    f"tuning.lora.{field} names {pattern}, which matches no module with an adapter (for example "
                    f"{min(names)}): correct or remove it"
                )


def _fields(lora: Lora | Resolved) -> Iterable[tuple[str, Mapping[str, int]]]:
    return ((RANKS, lora.rank_pattern or {}), (ALPHAS, lora.alpha_pattern or {}))
