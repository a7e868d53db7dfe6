"""What the gate's own process is told, and what it answers: two JSON files."""

from pathlib import Path

from pydantic import BaseModel

from finetune_trainer.evaluation.gate_rules import ValidationResult
from finetune_trainer.models.quantised import Quantised

OUT_OF_MEMORY = 12
"""The process's exit code where a model did not fit, named as the error of the system."""


class Candidate(BaseModel):
    """A full model on disk; with `is_dequantised` it was merged into the base as NF4 computes with it."""

    name: str
    directory: Path
    is_dequantised: bool = False


class GatePlan(BaseModel):
    """What to load and to compare; `adapter` or, of a fully tuned model, `weights` is what was trained."""

    base: Path
    adapter: Path | None = None
    weights: Path | None = None
    quantised: Quantised | None = None
    precision: str
    candidates: list[Candidate]
    samples: list[tuple[list[int], list[int]]]
    """Token ids and labels of held-out rows."""
    prompts: list[str]
    stop_ids: list[int]
    max_new_tokens: int
    tokenizer_sha256: dict[str, str]
    """SHA-256 of each file that the tokenizer and its templates consist of, by its path in a model's folder."""
    device: str


class GateReply(BaseModel):
    """One observation of each candidate, in order."""

    results: list[ValidationResult]
