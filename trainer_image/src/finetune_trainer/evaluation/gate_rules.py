"""The gate's rules: which full model may be published, from figures alone. Nothing is loaded here."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

LARGEST_MEAN_KL = 0.05
"""Nats per token. On SmolLM2-135M a correct merge is at 0.0001 to 0.01; a merge into a base that the adapter was not
trained on (NF4 instead of 16 bits) is at 0.9."""
LEAST_AGREEMENT = 0.97
CLEAR_MARGIN = 0.1
"""Nats between the first and the second choice: rounding can swap closer ones."""
LOSS_FACTOR, LOSS_ALLOWANCE = 1.02, 0.01
"""The held-out loss may be the trained model's, times the factor, plus the allowance in nats."""
LOOP_TIMES = 6
LOOP_PIECE = 80
LOOP_CHARACTERS = 24
WIDER = {"FP16": "BF16 or FP32", "BF16": "FP32", "FP32": "None"}
"""The number formats to use instead of one that is too narrow for the weights."""


class GateResult(StrEnum):
    """The result of a gate."""

    PASSED = "Passed"
    NOT_MET = "NotMet"
    NOT_RUN = "NotRun"
    NOT_ASKED = "NotAsked"
    NOT_CONFIGURED = "NotConfigured"


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """A full model, read back and compared with its source in the same number format, on the same held-out tokens."""

    name: str
    faults: list[str]
    """Faults of its files; if there are any, nothing else was measured."""
    loss: float | None = None
    reference_loss: float | None = None
    mean_kl: float | None = None
    top1_agreement: float | None = None
    """Share of tokens with the same top token."""
    clear_agreement: float | None = None
    """The same over tokens where the reference's top token leads by `CLEAR_MARGIN`."""
    largest_difference: float | None = None
    """The largest difference of a log-probability, in nats."""
    tokens: int = 0
    answers: list[str] = field(default_factory=list)
    same_tokens: float | None = None
    """Of a GGUF file: the share of the held-out text's tokens that llama.cpp makes as the tokenizer does."""


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """The gate's results for each candidate for the full model, and the one to publish."""

    precision: str
    trained_loss: float | None
    """The loss of the model as trained, on the tokens on which the candidates are judged."""
    candidates: list[ValidationResult]
    faults: list[list[str]]
    """For each candidate, why it may not be published."""
    chosen: ValidationResult | None
    not_run: str = ""
    """Why the gate could not run."""
    seconds: float = 0.0

    @property
    def result(self) -> GateResult:
        """The result of the gate."""
        if self.chosen:
            return GateResult.PASSED
        return GateResult.NOT_RUN if self.not_run else GateResult.NOT_MET

    @property
    def sentence(self) -> str:
        """Why there is no full model, and what to change; empty if there is one."""
        if self.chosen:
            return ""
        if self.not_run:
            return f"the full model is withheld because its gate could not run: {self.not_run}"
        first = "; ".join(dict.fromkeys(faults[0] for faults in self.faults if faults))
        return f"the full model in {self.precision} is withheld: {first}. Set output.merge to {WIDER[self.precision]}"


@dataclass(frozen=True, slots=True)
class GatePrompt:
    """A prompt with the trained model's answer, and whether the answers match the expected pattern."""

    prompt: str
    tuned: str
    is_expected: list[bool] = field(default_factory=list)
    """Whether the trained model's answer matches, then each candidate's; empty if nothing is expected."""


def find_faults(seen: ValidationResult, trained_loss: float | None, asked: Sequence[GatePrompt], at: int) -> list[str]:
    """Return why a full model may not be published; empty if it may. `at` is its index among the candidates."""
    if seen.faults:
        return list(seen.faults)
    found = []
    if seen.mean_kl is None or not seen.mean_kl < LARGEST_MEAN_KL:
        divergence = format_figure(seen.mean_kl)
        found.append(f"its mean KL divergence from its source is {divergence}, not below {LARGEST_MEAN_KL} nats")
    if seen.clear_agreement is not None and seen.clear_agreement < LEAST_AGREEMENT:
        share = f"{100 * seen.clear_agreement:.1f} %"
        found.append(f"its top token equals its source's on {share} of clear tokens, below {LEAST_AGREEMENT:.0%}")
    trained_loss = seen.reference_loss if trained_loss is None else trained_loss
    limit = largest_loss(trained_loss)
    if limit is not None and (seen.loss is None or not seen.loss <= limit):
        found.append(
            f"its held-out loss is {format_figure(seen.loss)}, above {limit:.5g}, the limit for the trained model's "
            f"{trained_loss:.5g}"
        )
    return found + _find_answer_faults(seen.answers, asked, at)


def format_figure(value: float | None) -> str:
    """Format a figure; JSON turns infinite figures and NaN into None."""
    return "not a number" if value is None or not math.isfinite(value) else f"{value:.5g}"


def largest_loss(trained_loss: float | None) -> float | None:
    """Return the highest held-out loss that a full model may have."""
    return None if trained_loss is None else trained_loss * LOSS_FACTOR + LOSS_ALLOWANCE


def _find_answer_faults(answers: Sequence[str], asked: Sequence[GatePrompt], at: int) -> list[str]:
    found = []
    for number, (answer, question) in enumerate(zip(answers, asked, strict=False), 1):
        if is_loop(answer) and not is_loop(question.tuned):
            found.append(f"its answer to prompt {number} repeats endlessly, unlike the trained model's")
        if question.is_expected and question.is_expected[0] and not question.is_expected[1 + at]:
            found.append(f"its answer to prompt {number} does not match its pattern, unlike the trained model's")
    return found


def is_loop(answer: str) -> bool:
    """Return whether an answer ends in the same piece of text six times or more, 24 characters at least in all."""
    return any(
        answer.endswith(answer[-size:] * max(LOOP_TIMES, math.ceil(LOOP_CHARACTERS / size)))
        for size in range(1, min(LOOP_PIECE, len(answer)) + 1)
    )


def choose_candidate(seen: Sequence[ValidationResult], faults: Sequence[Sequence[str]]) -> ValidationResult | None:
    """Return the candidate without a fault that has the lowest held-out loss."""
    good = [one for one, found in zip(seen, faults, strict=True) if not found]
    return min(good, key=lambda one: one.loss if one.loss is not None else float("inf"), default=None)


def as_json(one: ValidationResult, faults: Sequence[str]) -> dict[str, Any]:
    """Return the candidate's entry in `validation.json`."""
    known = {key: value for key, value in asdict(one).items() if value is not None and key != "faults"}
    return known | {"faults": list(faults)}
