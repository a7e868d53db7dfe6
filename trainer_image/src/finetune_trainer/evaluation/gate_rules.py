"""The gate's rules: what a full model must be like to be published, on figures alone. Nothing is loaded here."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

LARGEST_MEAN_KL = 0.05
"""Nats per token. On SmolLM2-135M a right merge is at 0.0001 to 0.01, one into a base that it was not trained on (NF4
for 16 bits) at 0.9."""
LEAST_AGREEMENT = 0.97
CLEAR_MARGIN = 0.1
"""Nats between the first and the second choice: below it rounding alone turns them round."""
LOSS_FACTOR, LOSS_ALLOWANCE = 1.02, 0.01
"""The held-out loss may be the trained model's times the factor, plus the allowance in nats."""
_LOOP = re.compile(r"(.{1,80}?)\1{5,}\Z", re.DOTALL)
LOOP_CHARACTERS = 24
WIDER = {"FP16": "BF16 or FP32", "BF16": "FP32", "FP32": "None"}
"""What to ask for in place of a number format that is too narrow for the weights."""


class GateResult(StrEnum):
    """What a gate said."""

    PASSED = "Passed"
    NOT_MET = "NotMet"
    NOT_RUN = "NotRun"
    NOT_ASKED = "NotAsked"
    NOT_CONFIGURED = "NotConfigured"


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """A full model, read back, beside what it was made from; both in its number format, on the same held-out tokens."""

    name: str
    faults: list[str]
    """What is wrong with its files; where anything is, nothing else was measured."""
    loss: float | None = None
    reference_loss: float | None = None
    mean_kl: float | None = None
    top1_agreement: float | None = None
    """Share of tokens with the same first choice."""
    clear_agreement: float | None = None
    """The same over those where the reference's first choice leads by `CLEAR_MARGIN`."""
    largest_difference: float | None = None
    """Of a log-probability, in nats."""
    tokens: int = 0
    answers: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """The full model before the gate: what was seen of each candidate, and which of them is published."""

    precision: str
    trained_loss: float | None
    """Of the model as trained, on the tokens that the candidates are judged on."""
    candidates: list[ValidationResult]
    faults: list[list[str]]
    """Why a candidate may not be published, for each of them."""
    chosen: ValidationResult | None
    not_run: str = ""
    """Why the gate could not judge."""
    seconds: float = 0.0

    @property
    def result(self) -> GateResult:
        """What the gate said."""
        if self.chosen:
            return GateResult.PASSED
        return GateResult.NOT_RUN if self.not_run else GateResult.NOT_MET

    @property
    def sentence(self) -> str:
        """Why there is no full model, and what to change; empty where there is one."""
        if self.chosen:
            return ""
        if self.not_run:
            return f"the full model is withheld, for its gate could not be run: {self.not_run}"
        told = "; ".join(faults[0] for faults in self.faults if faults)
        wider = WIDER[self.precision]
        return f"the full model in {self.precision} is withheld: {told}. Set output.merge to {wider}"


@dataclass(frozen=True, slots=True)
class GatePrompt:
    """A question, what the trained model answers, and the pattern that an answer is to hold."""

    prompt: str
    tuned: str
    is_expected: list[bool] = field(default_factory=list)
    """Whether the trained model's answer holds it, then each candidate's; empty where nothing is expected."""


def find_faults(seen: ValidationResult, trained_loss: float | None, asked: Sequence[GatePrompt], at: int) -> list[str]:
    """Why the full model may not be published: nothing, if it may. `at` is its place among the candidates."""
    if seen.faults:
        return list(seen.faults)
    found = []
    if seen.mean_kl is None or not seen.mean_kl < LARGEST_MEAN_KL:
        told = _number(seen.mean_kl)
        found.append(f"its mean KL divergence from its source is {told} nats, not below {LARGEST_MEAN_KL}")
    if seen.clear_agreement is not None and seen.clear_agreement < LEAST_AGREEMENT:
        share = f"{100 * seen.clear_agreement:.1f} %"
        found.append(f"its first choice is that of its source on {share} of clear tokens, not {LEAST_AGREEMENT:.0%}")
    trained_loss = seen.reference_loss if trained_loss is None else trained_loss
    limit = largest_loss(trained_loss)
    if limit is not None and (seen.loss is None or not seen.loss <= limit):
        found.append(
            f"its held-out loss is {_number(seen.loss)}, more than {limit:.5g}, which the trained model's "
            f"{trained_loss:.5g} allows"
        )
    return found + _faults_of_answers(seen.answers, asked, at)


def _number(value: float | None) -> str:
    """A figure that is none comes out of JSON as nothing."""
    return "no number" if value is None or not math.isfinite(value) else f"{value:.5g}"


def largest_loss(trained_loss: float | None) -> float | None:
    """The highest held-out loss that a full model may have."""
    return None if trained_loss is None else trained_loss * LOSS_FACTOR + LOSS_ALLOWANCE


def _faults_of_answers(answers: Sequence[str], asked: Sequence[GatePrompt], at: int) -> list[str]:
    found = []
    for number, (answer, question) in enumerate(zip(answers, asked, strict=False), 1):
        if is_loop(answer) and not is_loop(question.tuned):
            found.append(f"its answer to prompt {number} repeats itself without end, the trained model's does not")
        if question.is_expected and question.is_expected[0] and not question.is_expected[1 + at]:
            found.append(f"its answer to prompt {number} lacks what is expected, the trained model's holds it")
    return found


def is_loop(answer: str) -> bool:
    """Whether an answer ends in the same piece of text six times or more."""
    loop = _LOOP.search(answer[-4096:])
    return loop is not None and len(loop.group(0)) >= LOOP_CHARACTERS


def choose_candidate(seen: Sequence[ValidationResult], faults: Sequence[Sequence[str]]) -> ValidationResult | None:
    """Of the candidates without a fault the one with the lower held-out loss."""
    good = [one for one, its in zip(seen, faults, strict=True) if not its]
    return min(good, key=lambda one: one.loss if one.loss is not None else float("inf"), default=None)


def as_json(one: ValidationResult, faults: Sequence[str]) -> dict[str, Any]:
    """The candidate as `validation.json` tells of it."""
    known = {key: value for key, value in asdict(one).items() if value is not None and key != "faults"}
    return known | {"faults": list(faults)}
