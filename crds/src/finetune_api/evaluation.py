"""Evaluation during training, the verdict on the result, and its gates."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api.blocks import ATOMIC_LIST, Block, FileUri, Text, cel, with_rule, with_rules
from finetune_api.rewards import COMPARISON_RULES, AnswerComparison, AnswerReward, CountedMatch, SchemaText
from finetune_api.scalars import Count, Digest, Line, Measure, StatusBlock, Word


class Verdict(StrEnum):
    """Whether the tuned model is better than the model before the training, on the held-out rows."""

    BETTER = "Better"
    WORSE = "Worse"
    NO_MEASURABLE_DIFFERENCE = "NoMeasurableDifference"
    NOT_EVALUATED = "NotEvaluated"


class EvaluationMetric(StrEnum):
    """The figure that is compared."""

    LOSS = "Loss"
    REWARD = "Reward"


class Prompt(Block):
    """A prompt whose answers by the base and the tuned model are in the report."""

    system: Text | None = None
    """System turn before the prompt (at most 4,096 characters). Default: `dataset.systemMessage`, else none."""
    prompt: Text
    """The prompt, as a user would write it (at most 4,096 characters)."""
    expected: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Python regular expression to find in the answer. The report shows whether it was found. The merged model must
    match it if the tuned model does, and `gate.mustMatchExpected` requires a match from the tuned model. Default:
    none."""


class Ability(Block):
    """Multiple-choice questions on general knowledge and skills, which the model answers before and after training."""

    model_config = with_rule(
        "!self.uri.endsWith('/') && !self.uri.matches('[*?]')",
        "uri must be one file, for example s3://bucket/path/questions.jsonl: give its full path",
        ".uri",
    )

    uri: FileUri
    """The questions, one file as `s3://bucket/key` or `pvc://claim/path`: rows with `question`, `choices` (2 to 26
    texts) and `answer` (the index of the correct choice, from 0, or its letter), as MMLU has them; or with `answerKey`
    and `choices` as ARC and OpenBookQA have them. JSON lines, JSON, CSV (with `choices` as JSON), Parquet or
    Arrow."""
    sha256: Digest | None = None
    """Expected SHA-256 of the object (64 hexadecimal digits); the job fails if the content differs. Default: not
    checked."""
    max_questions: Annotated[int, Field(ge=20, le=10_000)] = 400
    """Maximum number of questions to ask, chosen by the seed. Default: 400, with which the 95 % interval is ± 5
    percentage points if a quarter of the answers change."""


class HeldOutAnswers(AnswerComparison):
    """Answers to held-out rows before and after training, each compared with the row's own answer."""

    model_config = with_rules(
        *COMPARISON_RULES,
        cel(
            "(self.match == 'JsonSchema') == has(self.jsonSchema)",
            "jsonSchema is required with match JsonSchema and refused with any other: set or remove it",
            ".jsonSchema",
        ),
    )

    match: CountedMatch
    """`Exact`: the same text, without spaces around it. `Numeric`: the same number within the tolerances; `1,000`,
    `1e3` and `$1000` are the same. `MultipleChoice`: the same letter, given as `B`, `(B)`, `B.` or `answer: B`.
    `Json`: JSON with the same value. `JsonSchema`: JSON that is valid by `jsonSchema`."""
    json_schema: SchemaText | None = None
    """JSON schema of a correct answer to any row, as JSON text; required with match `JsonSchema`, refused with any
    other. References lead into the schema itself, and a `pattern` has neither look-around nor back-references.
    Default: none."""
    rows: Annotated[int, Field(ge=20, le=1000)] = 100
    """Maximum number of held-out rows to answer, the first with different prompts; an answer has at most
    `evaluation.maxNewTokens` tokens. Default: 100, with which the 95 % interval is ± 10 percentage points if a quarter
    of the answers change."""

    def as_reward(self) -> AnswerReward:
        """Return the comparison in the form of a reward."""
        return AnswerReward(**self.model_dump(exclude={"rows"}))


class Gate(Block):
    """Conditions that the tuned model must meet; otherwise the job fails with GateNotMet, and its files are kept."""

    model_config = with_rule(
        "has(self.maxEvalLoss) || self.mustImprove || self.mustMatchExpected || has(self.maxForgotten) "
        "|| has(self.minCorrect)",
        "evaluation.gate has no condition: set maxEvalLoss, mustImprove, mustMatchExpected, maxForgotten or minCorrect",
    )

    max_eval_loss: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Maximum held-out loss (nats per token; with DPO, KTO, RewardModel and Distillation, the loss of the objective).
    Default: no limit."""
    must_improve: bool = False
    """Require verdict `Better`: on the held-out rows the model is better than before training by more than the 95 %
    interval of the difference. Default: false."""
    must_match_expected: bool = False
    """Require each answer to match its prompt's `expected`. Default: false."""
    max_forgotten: Annotated[float, Field(ge=0, le=100)] | None = None
    """Maximum loss of general ability: by how many percentage points fewer questions of `evaluation.ability` the tuned
    model may answer correctly than the model before training. Default: no limit."""
    min_correct: Annotated[float, Field(ge=0, le=100)] | None = None
    """Minimum share of correct answers of the tuned model to the rows of `evaluation.answers`, in percent. Default: no
    limit."""


class Evaluation(Block):
    """Evaluation on the held-out rows during training."""

    model_config = with_rules(
        cel(
            "!has(self.gate) || !has(self.gate.maxForgotten) || has(self.ability)",
            "maxForgotten needs questions: set evaluation.ability.uri",
            ".gate.maxForgotten",
        ),
        cel(
            "!has(self.gate) || !has(self.gate.minCorrect) || has(self.answers)",
            "minCorrect needs answers to held-out rows: set evaluation.answers.match",
            ".gate.minCorrect",
        ),
    )

    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimiser steps between evaluations; needs held-out rows. Default: a tenth of the training, at least 1."""
    baseline: bool = True
    """Evaluate the model before training, at step 0. Default: true."""
    prompts: Annotated[list[Prompt], Field(max_length=16, json_schema_extra=ATOMIC_LIST)] | None = None
    """Prompts that the base and the tuned model answer in the report (at most 16). A change takes effect with the next
    attempt that trains; fixed at creation with `gate.mustMatchExpected`. Default: the prompts of three held-out rows;
    an empty list means none."""
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 128
    """Maximum length of an answer to `prompts` and to the rows of `answers`, in tokens. Default: 128."""
    answers: HeldOutAnswers | None = None
    """Answer held-out rows before and after training, and count the correct answers: for tasks with one correct answer,
    such as classes, numbers or JSON. With objectives Instruction, Chat, DPO and KTO; needs held-out rows. Default:
    none."""
    ability: Ability | None = None
    """Questions on general ability before and after training, to find what the model has forgotten. Default: none."""
    gate: Gate | None = None
    """Conditions that the tuned model must meet for the job to succeed. Default: none; the figures are only
    reported."""


class EarlyStopping(Block):
    """Stop training when the evaluation loss no longer falls; needs held-out rows."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Evaluations without improvement before training stops. Default: 3."""
    min_delta: Annotated[float, Field(ge=0, le=100)] = 0.001
    """Smallest decrease of the evaluation loss (nats per token) that counts as an improvement. Default: 0.001."""
    warmup_evaluations: Annotated[int, Field(ge=0, le=1000)] = 0
    """Number of first evaluations that do not count against `patience`, for a learning rate that still rises. Default:
    0."""


class CorrectStatus(StatusBlock):
    """Shares of correct answers before and after training."""

    before_percent: Measure | None = None
    """Correct answers before training, in percent."""
    after_percent: Measure | None = None
    """Correct answers of the tuned model, in percent."""
    difference_points: Measure | None = None
    """`afterPercent` minus `beforePercent` in percentage points, on the same questions."""
    difference_low_points: Measure | None = None
    """Lower end of the 95 % interval of `differencePoints`."""
    difference_high_points: Measure | None = None
    """Upper end of the 95 % interval of `differencePoints`: below zero, the model is worse."""


class AbilityStatus(CorrectStatus):
    """General ability before and after training, on the questions of `evaluation.ability`."""

    questions: Count | None = None
    """Questions that were asked."""

    @property
    def has_forgotten(self) -> bool | None:
        """Whether the interval of the difference is below zero; None without an interval."""
        return None if self.difference_high_points is None else self.difference_high_points < 0


class AnswersStatus(CorrectStatus):
    """Correct answers to held-out rows before and after training, by `evaluation.answers`."""

    rows: Count | None = None
    """Held-out rows that were answered."""


class EvaluationStatus(StatusBlock):
    """The verdict on the result, and the results of the gates."""

    verdict: Word | None = None
    """Whether the model that will be served is better than before training, on the held-out rows: `Better` or `Worse`
    if the 95 % interval of the difference excludes zero, `NoMeasurableDifference` if it does not, or `NotEvaluated`."""
    change: Word | None = None
    """Human-readable difference: of a loss in percent, of a reward in its own unit, for example `-31 %`; with
    `(not measurable)` after it if the verdict is neither `Better` nor `Worse`."""
    metric: Word | None = None
    """Figure that is compared: `Loss` (nats per trained token; with DPO, KTO and RewardModel, per row) or `Reward`."""
    before: Measure | None = None
    """The figure before training."""
    after: Measure | None = None
    """The figure of the tuned model."""
    difference: Measure | None = None
    """`after` minus `before`, from the same rows."""
    difference_low: Measure | None = None
    """Lower end of the 95 % interval of `difference`."""
    difference_high: Measure | None = None
    """Upper end of the 95 % interval of `difference`."""
    rows: Count | None = None
    """Held-out rows that were compared."""
    served_as: Word | None = None
    """Model that was measured: `Adapter` (on the base in 16 bits, as serving software loads it) or `Model` (all
    weights)."""
    verdict_message: Line | None = None
    """The verdict in one sentence, and how many rows would show more."""
    ability: AbilityStatus | None = None
    """General ability before and after training, if `evaluation.ability` is set."""
    answers: AnswersStatus | None = None
    """Correct answers to held-out rows before and after training, if `evaluation.answers` is set."""
    gate: Word | None = None
    """Whether the tuned model meets `evaluation.gate`: `Passed`, `NotMet` or `NotConfigured`."""
    merge_gate: Word | None = None
    """Whether the full model, loaded from its files, answers like the trained one: `Passed`, `NotMet`, `NotRun` or
    `NotAsked`. A model that did not pass is not published."""
    gguf_gate: Word | None = None
    """Whether every file of `output.gguf`, loaded with llama.cpp, answers like the full model: `Passed`, `NotMet`,
    `NotRun` or `NotAsked`. A file that did not pass is not published."""
    gate_message: Line | None = None
    """Conditions of `gate`, `mergeGate` and `ggufGate` that were not met, and what to change."""

    @property
    def is_met(self) -> bool | None:
        """Whether every configured gate passed; None if none is configured."""
        asked = {self.gate, self.merge_gate, self.gguf_gate} - {None, "NotConfigured", "NotAsked"}
        return asked == {"Passed"} if asked else None
