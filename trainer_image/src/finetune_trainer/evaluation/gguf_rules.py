"""Which GGUF files may be published, from figures alone. Nothing is loaded here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune_trainer.evaluation.gate_rules import (
    LARGEST_MEAN_KL,
    LOSS_ALLOWANCE,
    LOSS_FACTOR,
    GateResult,
    ValidationResult,
    as_json,
    format_figure,
    is_loop,
)


class Drift(NamedTuple):
    """How far a file may be from the full model, on the same held-out tokens."""

    mean_kl: float
    """Nats per token."""
    loss_factor: float


AS_MERGED = Drift(LARGEST_MEAN_KL, LOSS_FACTOR)
FEW_BITS = Drift(0.2, 1.1)
"""On SmolLM2-135M, whose narrow matrices lose most: KL 0.002 as BF16, 0.011 as Q8_0, 0.03 as Q6_K, 0.15 as Q5_K_M, 0.09
as Q4_K_M; the loss rises by 0 to 7 %."""
ALLOWED = {"Q5_K_M": FEW_BITS, "Q4_K_M": FEW_BITS}
"""The types that lose more than a merge may."""
LEAST_SAME_TOKENS = 0.9
"""Share of the held-out text's tokens that llama.cpp must make as the tokenizer does."""
NARROWER = "name a type with more bits in output.gguf"


@dataclass(frozen=True, slots=True)
class GgufCheck:
    """The files of `output.gguf`, as llama.cpp reads them, compared with the full model."""

    files: list[ValidationResult]
    faults: list[list[str]]
    """For each file, why it may not be published."""
    not_run: str = ""
    """Why no file could be made or compared."""
    seconds: float = 0.0

    @property
    def published(self) -> list[ValidationResult]:
        """The files without a fault."""
        return [one for one, faults in zip(self.files, self.faults, strict=True) if not faults]

    @property
    def result(self) -> GateResult:
        """The result of the gate."""
        if self.not_run:
            return GateResult.NOT_RUN
        return GateResult.NOT_MET if any(self.faults) else GateResult.PASSED

    @property
    def sentence(self) -> str:
        """Which files are not published, and what to change; empty if all are."""
        if self.not_run:
            return f"there are no GGUF files: {self.not_run}"
        withheld = [
            f"GGUF {one.name} is withheld: {faults[0]}"
            for one, faults in zip(self.files, self.faults, strict=True)
            if faults
        ]
        return f"{'; '.join(withheld)}: {NARROWER}" if withheld else ""


def find_gguf_faults(seen: ValidationResult, merged_answers: Sequence[str]) -> list[str]:
    """Return why a file may not be published; empty if it may. `merged_answers` are those of the full model."""
    if seen.faults:
        return list(seen.faults)
    allowed, found = ALLOWED.get(seen.name, AS_MERGED), []
    if seen.same_tokens is not None and seen.same_tokens < LEAST_SAME_TOKENS:
        found.append(f"llama.cpp makes only {seen.same_tokens:.0%} of the held-out tokens as the tokenizer does")
    if seen.mean_kl is None or not seen.mean_kl < allowed.mean_kl:
        found.append(
            f"its mean KL divergence from the full model is {format_figure(seen.mean_kl)}, not below "
            f"{allowed.mean_kl} nats"
        )
    limit = (seen.reference_loss or 0.0) * allowed.loss_factor + LOSS_ALLOWANCE
    if seen.loss is None or not seen.loss <= limit:
        found.append(
            f"its held-out loss is {format_figure(seen.loss)}, above {limit:.5g}, the limit for the full model's "
            f"{format_figure(seen.reference_loss)}"
        )
    for number, (answer, merged) in enumerate(zip(seen.answers, merged_answers, strict=False), 1):
        if is_loop(answer) and not is_loop(merged):
            found.append(f"its answer to prompt {number} repeats endlessly, unlike the full model's")
    return found


def gguf_to_json(check: GgufCheck) -> dict[str, Any]:
    """Return the entry `gguf` in `validation.json`."""
    rules = {
        one.name: dict(zip(("largestMeanKl", "lossFactor"), ALLOWED.get(one.name, AS_MERGED), strict=True))
        for one in check.files
    }
    return {
        "notRun": check.not_run or None,
        "seconds": round(check.seconds, 1),
        "rules": rules,
        "files": [as_json(one, its) for one, its in zip(check.files, check.faults, strict=True)],
    }
