"""Evaluation during training, the gates of the result, and their verdict."""

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.blocks import Block, Text, cel, rules
from finetune_api.scalars import Line, StatusBlock, Word


class Prompt(Block):
    """A prompt that the base and the tuned model answer in the report."""

    prompt: Text
    """The prompt, as a user would write it (at most 4,096 characters)."""
    expected: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Python regular expression to find in the answer. The report shows whether it is found; the merged model must
    match it if the tuned model does, and `gate.mustMatchExpected` requires it of the tuned model. Default: none."""


class Gate(Block):
    """What the tuned model must reach; if it does not, the job fails with GateNotMet, and its files stay."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "has(self.maxEvalLoss) || self.mustImprove || self.mustMatchExpected",
                "a gate that asks for nothing is met by everything: set maxEvalLoss, mustImprove or mustMatchExpected",
            )
        )
    )

    max_eval_loss: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Highest held-out loss (nats per token; of DPO, KTO and RewardModel their own loss) to accept. Default: any."""
    must_improve: bool = False
    """Whether the held-out loss must be lower than before the training. Default: false."""
    must_match_expected: bool = False
    """Whether each answer must match its prompt's `expected`. Default: false."""


class Evaluation(Block):
    """Evaluation on the held-out rows while training."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Evaluate every this many optimiser steps. Default: a tenth of the training, at least 1."""
    baseline: bool = True
    """Evaluate the untouched model at step 0. Default: true."""
    prompts: (
        Annotated[list[Prompt], Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"})] | None
    ) = None
    """Questions answered by the base and by the tuned model in the report (at most 16). Default: none."""
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 128
    """Longest answer to `prompts`, in tokens. Default: 128."""
    gate: Gate | None = None
    """What the tuned model must reach to be a success. Default: none, the figures are reported."""


class EarlyStopping(Block):
    """Stop when the evaluation loss no longer falls; needs a validation source."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Evaluations without improvement before training stops. Default: 3."""
    min_delta: Annotated[float, Field(ge=0, le=100)] = 0.001
    """Smallest fall of the evaluation loss (nats per token) that counts as an improvement. Default: 0.001."""
    warmup_evaluations: Annotated[int, Field(ge=0, le=1000)] = 0
    """First evaluations that patience does not count, as long as the learning rate still rises. Default: 0."""


class EvaluationStatus(StatusBlock):
    """Verdict of the gates on the result."""

    gate: Word | None = None
    """Whether the tuned model meets `evaluation.gate`: `Passed`, `NotMet` or `NotConfigured`."""
    merged: Word | None = None
    """Whether the full model, read back, answers as the trained one does: `Passed`, `NotMet`, `NotRun` or `NotAsked`.
    One that has not passed is not published."""
    message: Line | None = None
    """What was not met, and what to change."""

    @property
    def is_met(self) -> bool | None:
        """Whether every gate that was asked for was passed; None where none was."""
        asked = {self.gate, self.merged} - {None, "NotConfigured", "NotAsked"}
        return asked == {"Passed"} if asked else None
