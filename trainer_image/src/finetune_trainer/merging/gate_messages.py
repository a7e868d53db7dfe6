"""The input and the output of the gate's own process: two JSON files."""

from pathlib import Path

from pydantic import BaseModel

from finetune_trainer.data.rows import Message
from finetune_trainer.evaluation.gate_rules import ValidationResult
from finetune_trainer.models.quantised import Quantised

OUT_OF_MEMORY = 12
"""The process's exit code if a model did not fit; the number of the system's ENOMEM."""


class Candidate(BaseModel):
    """A full model on disk; with `is_dequantised` it was merged into the base as dequantised from NF4."""

    name: str
    directory: Path
    is_dequantised: bool = False


class GatePlan(BaseModel):
    """What to load and compare; `adapter` or, for a fully tuned model, `weights` was trained."""

    base: Path
    adapter: Path | None = None
    weights: Path | None = None
    quantised: Quantised | None = None
    precision: str
    candidates: list[Candidate]
    samples: list[tuple[list[int], list[int]]]
    """Token ids and labels of held-out rows."""
    prompts: list[list[Message]]
    stop_ids: list[int]
    max_new_tokens: int
    tokenizer_sha256: dict[str, str]
    """SHA-256 of each file of the tokenizer and its templates, by its path in a model's folder."""
    device: str


class GateReply(BaseModel):
    """One result per candidate, in order."""

    results: list[ValidationResult]
