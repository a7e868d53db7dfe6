"""Rules that preflight checks and the API server cannot: names of columns, and regular expressions."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from finetune_api.dataset.columns import find_unknown, fix_column
from finetune_api.spec import FineTuneJobSpec
from finetune_api.text.expressions import count_groups, find_expression_fault

FIX_EXPRESSION = "correct it, in the syntax of Python"
ONE_GROUP = "put the part to compare in one group, and write others as (?:…)"


class PreflightFault(NamedTuple):
    """A value that preflight always refuses."""

    path: tuple[str | int, ...]
    message: str
    fix: str


def find_preflight_faults(spec: FineTuneJobSpec) -> Iterator[PreflightFault]:
    """Yield every fault of the spec for which preflight needs neither rows nor model."""
    dataset = spec.dataset
    yield from _of_columns(dataset.columns, ("spec", "dataset", "columns"))
    for at, source in enumerate(dataset.train.sources or ()):
        yield from _of_columns(source.columns, ("spec", "dataset", "train", "sources", at, "columns"))
    for at, prompt in enumerate(spec.evaluation.prompts or ()):
        yield from _of_expression(prompt.expected, ("spec", "evaluation", "prompts", at, "expected"))
    for at, reward in enumerate(spec.rewards):
        place = ("spec", "rlhf", "rewards", at)
        yield from _of_expression(reward.pattern, (*place, "pattern"))
        if reward.answer:
            yield from _of_expression(reward.answer.pattern, (*place, "answer", "pattern"), has_group=True)
    if lora := spec.tuning.lora:
        yield from _of_keys(lora.rank_pattern, "rankPattern")
        yield from _of_keys(lora.alpha_pattern, "alphaPattern")


def _of_columns(columns: Mapping[str, str] | None, path: tuple[str | int, ...]) -> Iterator[PreflightFault]:
    for name in find_unknown(frozenset(columns or ())):
        yield PreflightFault((*path, name), "is in no format", fix_column(name))


def _of_expression(
    pattern: str | None, path: tuple[str | int, ...], *, has_group: bool = False
) -> Iterator[PreflightFault]:
    if pattern is None:
        return
    if why := find_expression_fault(pattern):
        yield PreflightFault(path, f"is not a regular expression ({why})", FIX_EXPRESSION)
    elif has_group and (groups := count_groups(pattern)) != 1:
        yield PreflightFault(path, f"has {groups} groups", ONE_GROUP)


def _of_keys(patterns: Mapping[str, int] | None, field: str) -> Iterator[PreflightFault]:
    for pattern in patterns or ():
        if why := find_expression_fault(pattern):
            message = f"has a key that is not a regular expression, {pattern} ({why})"
            yield PreflightFault(("spec", "tuning", "lora", field), message, FIX_EXPRESSION)
