"""What answers are to hold: `evaluation.prompts[].expected`, and what `evaluation.gate` asks of the tuned model."""

import logging
import re
import warnings
from collections.abc import Sequence

import regex

from finetune_api.evaluation import Gate, Prompt
from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.evaluation.run_record import Answer

logger = logging.getLogger(__name__)


class Expectations:
    """The patterns of a job's prompts; raises InvalidConfig where one cannot be read."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._patterns = [
            compile_pattern(prompt.expected, f"evaluation.prompts[{at}].expected") if prompt.expected else None
            for at, prompt in enumerate(prompts)
        ]

    def is_met(self, at: int, answer: str) -> bool | None:
        """Whether an answer to that prompt holds what is expected; None where nothing is."""
        pattern = self._patterns[at] if at < len(self._patterns) else None
        if pattern is None:
            return None
        try:
            return is_found(pattern, answer)
        except TimeoutError:
            logger.warning(
                "evaluation.prompts[%d].expected takes more than %s s in an answer, which counts as not found",
                at,
                PATTERN_SECONDS,
            )
            return False

    def are_met(self, at: int, answers: Sequence[str]) -> list[bool]:
        """The same of several answers; empty where nothing is expected."""
        return [bool(self.is_met(at, answer)) for answer in answers] if self.is_met(at, "") is not None else []


def find_unmet(
    gate: Gate | None, baseline: Measured | None, final: Measured | None, answers: Sequence[Answer]
) -> list[str]:
    """What the tuned model does not reach of what `evaluation.gate` asks, each with the figures."""
    if gate is None:
        return []
    found = []
    if gate.max_eval_loss is not None and (final is None or not final.loss <= gate.max_eval_loss):
        told = f"{final.loss:.5g}" if final else "unknown"
        found.append(f"the evaluation loss is {told}, above maxEvalLoss {gate.max_eval_loss:g}")
    if gate.must_improve and (final is None or baseline is None or not final.loss < baseline.loss):
        before, after = (f"{one.loss:.5g}" if one else "unknown" for one in (baseline, final))
        found.append(f"the evaluation loss did not fall ({before} before, {after} after)")
    if gate.must_match_expected:
        missed = [str(number) for number, answer in enumerate(answers, 1) if answer.is_expected is False]
        if missed:
            found.append(f"the answer to prompt {', '.join(missed)} lacks what is expected")
    return found


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


def is_found(pattern: "regex.Pattern[str]", text: str) -> bool:
    """Whether it is found; raises TimeoutError."""
    return pattern.search(text, timeout=PATTERN_SECONDS) is not None
