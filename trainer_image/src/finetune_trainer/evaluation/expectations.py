"""Expected answers (`evaluation.prompts[].expected`) and the rules of `evaluation.gate`."""

import logging
import warnings
from collections.abc import Sequence

import regex

from finetune_api.evaluation import Gate, Prompt, Verdict
from finetune_api.text.expressions import find_expression_fault
from finetune_api.text.printable import printable
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.evaluation.run_record import Answer

logger = logging.getLogger(__name__)

PATTERN_SECONDS = 0.5
"""Longest search in one answer; a sound pattern takes less than a millisecond in a thousand tokens."""

SHOWN_ANSWERS = 2
SHOWN_OF_ANSWER, SHOWN_OF_PATTERN = 80, 60
"""Characters; the message of a status has room for 1,000."""
MISSED_FIX = "add rows with answers as you expect them, or correct the pattern"


def compile_pattern(pattern: str, name: str) -> "regex.Pattern[str]":
    """Compile a pattern, or raise InvalidConfig with the field's name.

    Python's own compiler must accept it too, because `regex` also supports recursion, which takes unbounded memory.
    """
    why = find_expression_fault(pattern)
    try:
        if not why:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about syntax that a later version may interpret differently
                return regex.compile(pattern)
    except (regex.error, ValueError, OverflowError, RecursionError) as error:
        why = str(error)
    raise InvalidConfig(f"{name} is not a regular expression: {why}")


def is_found(pattern: "regex.Pattern[str]", text: str) -> bool:
    """Return whether the pattern is found; raises TimeoutError."""
    return pattern.search(text, timeout=PATTERN_SECONDS) is not None


class Expectations:
    """The expected patterns of a job's prompts, or of the answers to them; raises InvalidConfig for an invalid one."""

    def __init__(self, prompts: Sequence[Prompt | Answer]) -> None:
        self._patterns = [
            compile_pattern(prompt.expected, f"evaluation.prompts[{at}].expected") if prompt.expected else None
            for at, prompt in enumerate(prompts)
        ]

    def is_met(self, at: int, answer: str) -> bool | None:
        """Return whether an answer to that prompt matches its pattern; None if it has none."""
        pattern = self._patterns[at] if at < len(self._patterns) else None
        if pattern is None:
            return None
        try:
            return is_found(pattern, answer)
        except TimeoutError:
            logger.warning(
                "evaluation.prompts[%d].expected takes longer than %s s in an answer, which counts as no match",
                at,
                PATTERN_SECONDS,
            )
            return False

    def are_met(self, at: int, answers: Sequence[str]) -> list[bool]:
        """Return the same for several answers; empty if the prompt has no pattern."""
        return [bool(self.is_met(at, answer)) for answer in answers] if self.is_met(at, "") is not None else []


def find_unmet(
    gate: Gate | None, verdict: Verdict, detail: str, loss: float | None, answers: Sequence[Answer]
) -> list[str]:
    """Return the rules of `evaluation.gate` that the tuned model does not meet, each with its figures.

    `detail` is the verdict in one sentence, `loss` the held-out loss of the model that will be served.
    """
    if gate is None:
        return []
    found = []
    if gate.max_eval_loss is not None and loss is None:
        found.append(f"there is no evaluation loss to compare with maxEvalLoss {gate.max_eval_loss:g} ({detail})")
    elif gate.max_eval_loss is not None and loss is not None and not loss <= gate.max_eval_loss:
        found.append(f"the evaluation loss is {loss:.5g}, above maxEvalLoss {gate.max_eval_loss:g}")
    if gate.must_improve and verdict is not Verdict.BETTER:
        found.append(f"mustImprove needs verdict Better, and the result is {detail}")
    if gate.must_match_expected:
        missed = [at for at, answer in enumerate(answers) if answer.is_expected is False]
        if missed:
            found.append(f"{_describe_missed(missed, answers)}: {MISSED_FIX}")
    return found


def _describe_missed(missed: Sequence[int], answers: Sequence[Answer]) -> str:
    """Return the first answers with the patterns that they do not match, and the numbers of the others."""
    shown = []
    for at in missed[:SHOWN_ANSWERS]:
        begin = _begin(answers[at].tuned, SHOWN_OF_ANSWER)
        answer = f"{at + 1}, {begin}," if begin else f"{at + 1}, which is empty,"
        pattern = _begin(answers[at].expected or "", SHOWN_OF_PATTERN)
        shown.append(f"to prompt {answer} does not match evaluation.prompts[{at}].expected {pattern}")
    others = [str(at + 1) for at in missed[SHOWN_ANSWERS:]]
    more = f", nor do those to prompt{'s' if len(others) > 1 else ''} {', '.join(others)}" if others else ""
    return f"the answer {', that '.join(shown)}{more}"


def _begin(text: str, limit: int) -> str:
    """Return the beginning of the text on one line in quotation marks; empty if there is no text."""
    flat = " ".join(text.split())
    return f'"{printable(flat if len(flat) <= limit else f"{flat[: limit - 1]}…")}"' if flat else ""
