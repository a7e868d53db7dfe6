"""Training objectives, and the settings that belong to one of them."""

import json
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from finetune_api.blocks import ATOMIC, ATOMIC_LIST, SET, Block, Endpoint, ModelUri, ObjectName, SecretRef, cel, rules
from finetune_api.inputs.sources import Teacher


class Objective(StrEnum):
    """Objective of the training."""

    INSTRUCTION = "Instruction"
    CHAT = "Chat"
    DPO = "DPO"
    KTO = "KTO"
    REWARD_MODEL = "RewardModel"
    RLHF = "RLHF"
    DISTILLATION = "Distillation"
    DOMAIN_ADAPTATION = "DomainAdaptation"


SUPERVISED = (Objective.INSTRUCTION, Objective.CHAT, Objective.DOMAIN_ADAPTATION)
"""Objectives whose loss is a mean over the trained tokens of the rows; others have one for each row."""
SAMPLED = frozenset({Objective.RLHF, Objective.DISTILLATION})
"""Objectives whose model answers prompts in the training."""
SMALLEST_KTO_BATCH = 2
"""The divergence is a mean over a batch, clipped at zero: over one row it would be noise with a positive bias."""


class LossType(StrEnum):
    """The loss of DPO, under TRL's names."""

    SIGMOID = "sigmoid"
    HINGE = "hinge"
    IPO = "ipo"
    ROBUST = "robust"
    EXO_PAIR = "exo_pair"
    NCA_PAIR = "nca_pair"
    BCO_PAIR = "bco_pair"
    SPPO_HARD = "sppo_hard"
    APO_ZERO = "apo_zero"
    APO_DOWN = "apo_down"
    DISCOPOP = "discopop"
    SIGMOID_NORM = "sigmoid_norm"


class Algorithm(StrEnum):
    """Reinforcement learning algorithm, under TRL's names."""

    GRPO = "GRPO"
    RLOO = "RLOO"


class PolicyLoss(StrEnum):
    """How GRPO weighs the tokens of a step's answers, under TRL's names."""

    DAPO = "dapo"
    GRPO = "grpo"
    DR_GRPO = "dr_grpo"


class RewardScale(StrEnum):
    """What GRPO divides the differences of rewards by, under TRL's names."""

    GROUP = "group"
    BATCH = "batch"
    NONE = "none"


class RolloutEngine(StrEnum):
    """What samples the answers that a model is trained on."""

    TRANSFORMERS = "Transformers"
    VLLM = "VLLM"


class RewardType(StrEnum):
    """Type of a computed reward."""

    LENGTH = "Length"
    REGEX = "Regex"
    ANSWER = "Answer"
    SERVICE = "Service"


class Match(StrEnum):
    """How an answer is compared with the row's reference."""

    EXACT = "Exact"
    NUMERIC = "Numeric"
    MULTIPLE_CHOICE = "MultipleChoice"
    JSON = "Json"
    JSON_SCHEMA = "JsonSchema"
    SIMILAR = "Similar"


class CountedMatch(StrEnum):
    """The same, without a part of a correct answer."""

    EXACT = "Exact"
    NUMERIC = "Numeric"
    MULTIPLE_CHOICE = "MultipleChoice"
    JSON = "Json"
    JSON_SCHEMA = "JsonSchema"


class Similarity(StrEnum):
    """How the similarity of two texts is measured."""

    FUZZY_MATCH = "FuzzyMatch"
    ROUGE_1 = "Rouge1"
    ROUGE_2 = "Rouge2"
    ROUGE_L = "RougeL"


class Extract(StrEnum):
    """The part of an answer that is compared."""

    WHOLE = "Whole"
    LAST_NUMBER = "LastNumber"
    BOXED = "Boxed"
    HASHES = "Hashes"
    PATTERN = "Pattern"


HAS_SMOOTHING = "!has(self.labelSmoothing) || self.lossType in ['robust', 'exo_pair']"


class Dpo(Block):
    """Settings of objective DPO, under TRL's names."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                HAS_SMOOTHING,
                "labelSmoothing is of losses robust and exo_pair: set lossType to one of them, or remove "
                "labelSmoothing",
                ".labelSmoothing",
            )
        )
    )

    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    """Weight of the penalty for deviating from the reference model. Default: 0.1."""
    loss_type: LossType = LossType.SIGMOID
    """`sigmoid` (DPO), `hinge` (SLiC), `ipo`, `robust` (for wrong labels), `exo_pair`, `nca_pair`, `bco_pair`,
    `sppo_hard`, `apo_zero`, `apo_down`, `discopop` or `sigmoid_norm` (by length). Default: `sigmoid`."""
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """Share of pairs whose labels are taken to be swapped; with losses `robust` and `exo_pair`. Default: 0.1 with
    `robust`, 0.001 with `exo_pair`."""
    sft_weight: Annotated[float, Field(gt=0, le=100)] | None = None
    """Weight of the chosen answer's own loss per token, added to that of the pair. It keeps the chosen answer likely.
    Default: none is added."""


class Kto(Block):
    """Settings of objective KTO, under TRL's names."""

    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    """Weight of the penalty for deviating from the reference model. Default: 0.1."""
    desirable_weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Weight of the answers labelled good; raise it if they are few. Default: 1."""
    undesirable_weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Weight of the answers labelled bad; raise it if they are few. Default: 1."""


class JobReference(Block):
    """Another FineTuneJob in the same namespace."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    name: ObjectName
    """Name of the FineTuneJob."""


class RewardModelSource(Block):
    """The model that scores answers."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "has(self.uri) != has(self.jobRef)",
                "give the reward model either by uri or by jobRef: set one of the two",
                ".uri",
            )
        )
    )

    uri: ModelUri | None = None
    """Folder of a model that objective RewardModel published, or of a sequence classification model with one label,
    with the forms of `model.uri`. Exclusive with `jobRef`. Default: the result of `jobRef`."""
    job_ref: JobReference | None = None
    """FineTuneJob with objective RewardModel that publishes it; this job waits until it is complete.
    Exclusive with `uri`. Default: none."""


ONE_JSON_SCHEMA = "self.match == 'JsonSchema' ? has(self.jsonSchema) != has(self.column) : !has(self.jsonSchema)"
HAS_SIMILARITY = "(self.match == 'Similar') == has(self.similarity)"
JSON_EXTRACT = "!(self.match in ['Json', 'JsonSchema']) || self.extract in ['Whole', 'Pattern']"


def _require_schema(text: str) -> str:
    """Raise ValueError for a text that is not JSON, or no schema at all; preflight finds what else is wrong."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error}): write the schema as JSON text") from None
    if not isinstance(schema, dict | bool):
        raise ValueError('is not a JSON schema: write an object such as {"type": "object"}')
    return text


ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
SchemaText = Annotated[str, StringConstraints(min_length=2, max_length=16384), AfterValidator(_require_schema)]
COMPARISON_RULES = (
    cel(
        "(self.extract == 'Pattern') == has(self.pattern)",
        "pattern is required with extract Pattern and refused with any other: set or remove it",
        ".pattern",
    ),
    cel(
        "self.match == 'Numeric' || (!has(self.absoluteTolerance) && !has(self.relativeTolerance))",
        "absoluteTolerance and relativeTolerance are only for match Numeric: remove them",
        ".match",
    ),
    cel(
        "self.match == 'Exact' || !self.ignoreCase",
        "ignoreCase is only for match Exact: remove it",
        ".ignoreCase",
    ),
    cel(
        JSON_EXTRACT,
        "JSON is the whole answer or the group of a pattern: set extract to Whole or Pattern",
        ".extract",
    ),
)


class AnswerComparison(Block):
    """How an answer is compared with the row's reference."""

    extract: Extract = Extract.WHOLE
    """Part of the answer that is compared: `Whole`; `LastNumber`, the last number in it; `Boxed`, the last
    `\\boxed{…}`; `Hashes`, what follows the last `####` in its line; or `Pattern`, the group of `pattern`. An answer
    without this part is wrong. Default: `Whole`."""
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Regular expression (Python syntax) with one group, whose last match is compared; only with extract `Pattern`.
    Default: none."""
    absolute_tolerance: Annotated[float, Field(ge=0, le=1e12)] | None = None
    """Largest difference from the reference that is correct; only with match `Numeric`. Default: 0."""
    relative_tolerance: Annotated[float, Field(ge=0, le=1)] | None = None
    """The same as a share of the reference; the larger of the two tolerances counts. Default: 0."""
    ignore_case: bool = False
    """Ignore upper and lower case; only with match `Exact`. Default: false."""


class AnswerReward(AnswerComparison):
    """How an answer is compared with the row's reference."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *COMPARISON_RULES,
            cel(
                HAS_SIMILARITY,
                "similarity is required with match Similar and refused with any other: set or remove it",
                ".similarity",
            ),
            cel(
                ONE_JSON_SCHEMA,
                "match JsonSchema needs one schema, in jsonSchema or in a column of the rows, and any other match has "
                "none: set or remove jsonSchema",
                ".jsonSchema",
            ),
        )
    )

    match: Match
    """`Exact`: the same text, without spaces around it. `Numeric`: the same number within the tolerances; `1,000`,
    `1e3` and `$1000` are the same. `MultipleChoice`: the same letter, given as `B`, `(B)`, `B.` or `answer: B`.
    `Json`: JSON with the same value. `JsonSchema`: JSON that is valid by a schema. `Similar`: a text that is the more
    correct, from 0 to 1, the more similar it is, measured as in `similarity`."""
    similarity: Similarity | None = None
    """How similar two texts are; only with match `Similar`. `FuzzyMatch`: by the fewest characters to insert and delete
    (rapidfuzz's `ratio`). `Rouge1`, `Rouge2`: by the words, or pairs of adjacent words, that both have. `RougeL`: by
    the longest sequence of words that both have, in the same order. ROUGE is the F-measure, without stemming, and
    ignores upper and lower case. Default: none."""
    column: ColumnName | None = None
    """Column of the rows with the reference, or a path inside one (`reward_model.ground_truth`): a text, a number, or a
    list of either, any of which is correct; with match `Json` and `JsonSchema` also an object. Default: the row's own
    answer, which `dataset.columns` can map."""
    json_schema: SchemaText | None = None
    """JSON schema of a correct answer to any row, as JSON text; only with match `JsonSchema`. References lead into the
    schema itself, and a `pattern` has neither look-around nor back-references. Default: that of the row's `column`."""


class RewardService(Block):
    """A server of yours that scores answers, for example code that runs tests, or another model that judges."""

    endpoint: Endpoint
    """URL that up to 16 answers at once are posted to as JSON, with their prompts and the references of their rows; the
    response is `{"rewards": [0.5, …]}`, one number for each answer."""
    columns: (
        Annotated[
            list[ColumnName],
            Field(min_length=1, max_length=16, json_schema_extra=SET),
        ]
        | None
    ) = None
    """Columns of the rows that the server gets in addition to the row's own answer; a row without one of them is
    rejected. Default: none."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """Time in which one request must have its response. A request that fails is repeated for three minutes, then the
    run ends and is repeated from its last checkpoint; a failure is never a reward. Default: 60."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the key `REWARD_TOKEN`, a bearer token that is sent in each request's `Authorization`.
    Default: no credentials."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key `ca.crt` holds the certificate authority (PEM) of the endpoint.
    Default: the image's authorities."""


class Reward(Block):
    """A reward that is computed from the answer's text, from a comparison with its row's reference, or by a server."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "(self.type == 'Length') == has(self.targetTokens)",
                "targetTokens is required with type Length and refused with any other: set or remove it",
                ".targetTokens",
            ),
            cel(
                "(self.type == 'Regex') == has(self.pattern)",
                "pattern is required with type Regex and refused with any other: set or remove it",
                ".pattern",
            ),
            cel(
                "(self.type == 'Answer') == has(self.answer)",
                "answer is required with type Answer and refused with any other: set or remove it",
                ".answer",
            ),
            cel(
                "(self.type == 'Service') == has(self.service)",
                "service is required with type Service and refused with any other: set or remove it",
                ".service",
            ),
        )
    )

    type: RewardType
    """`Length`: 1 at `targetTokens`, falling linearly to 0 with the distance in tokens. `Regex`: 1 if `pattern` is
    found in the answer, else 0. `Answer`: 1 if the answer is that of its row, compared as in `answer`, else 0; with
    match `Similar` any value between.
    `Service`: the number that the server in `service` gives."""
    target_tokens: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Answer length (tokens) with the highest reward; only with type `Length`. Default: none."""
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Regular expression (Python syntax) to find in the answer; only with type `Regex`. Default: none."""
    answer: AnswerReward | None = None
    """Comparison with the reference of the answer's row; only with type `Answer`. Default: none."""
    service: RewardService | None = None
    """Server that scores the answers; only with type `Service`. Default: none."""
    weight: Annotated[float, Field(ge=-1000, le=1000)] = 1.0
    """Factor of this reward in the sum; a negative weight is a penalty. Default: 1."""


HAS_SHARE = "self.engine == 'VLLM' || !has(self.gpuMemoryFraction)"


class Rollouts(Block):
    """How the answers are sampled that the model is trained on."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                HAS_SHARE,
                "gpuMemoryFraction is of engine VLLM: set engine VLLM, or remove gpuMemoryFraction",
                ".gpuMemoryFraction",
            )
        )
    )

    engine: RolloutEngine = RolloutEngine.TRANSFORMERS
    """`Transformers`: the model that is trained. `VLLM`: vLLM in the same process and on the same GPU, with a copy of
    the model that gets the weights after each step; the trainer's image must contain vLLM. With methods `LoRA` and
    `Full`. Default: `Transformers`."""
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=0.95)] | None = None
    """Share of the GPU's memory for vLLM: its copy of the model, and the keys and values of the answers that it samples
    at the same time; only with engine `VLLM`. Default: 0.3."""


GROUPS_ONLY = "self.algorithm == 'GRPO' || (!has(self.lossType) && !has(self.scaleRewards))"


class Rlhf(Block):
    """Settings of objective RLHF, under TRL's names."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "has(self.rewardModel) != has(self.rewards)",
                "give either rewardModel or rewards: set one of the two",
                ".rewardModel",
            ),
            cel(
                GROUPS_ONLY,
                "lossType and scaleRewards are of algorithm GRPO: set algorithm GRPO, or remove them",
                ".algorithm",
            ),
        )
    )

    algorithm: Algorithm = Algorithm.GRPO
    """`GRPO` or `RLOO`. Default: `GRPO`."""
    reward_model: RewardModelSource | None = None
    """A learnt reward; exclusive with `rewards`. Default: none."""
    rewards: Annotated[list[Reward], Field(min_length=1, max_length=8, json_schema_extra=ATOMIC_LIST)] | None = None
    """Computed rewards, summed with their weights; exclusive with `rewardModel`. Default: none."""
    num_generations: Annotated[int, Field(ge=2, le=64)] = 8
    """Answers sampled for each prompt. Default: 8."""
    max_completion_length: Annotated[int, Field(ge=1, le=16384)] = 512
    """Maximum length of a sampled answer, in tokens. Default: 512."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Sampling temperature. Default: 1."""
    beta: Annotated[float, Field(ge=0, le=100)] = 0.04
    """Weight of the KL divergence from the reference model; 0 = no reference model. Default: 0.04."""
    loss_type: PolicyLoss | None = None
    """How the tokens of a step's answers are weighed; only with algorithm `GRPO`. `dapo`: all alike, so that a long
    answer counts more than a short one. `grpo`: a mean over each answer, so that all answers count alike. `dr_grpo`:
    all alike, and divided by `maxCompletionLength` instead of their number. Default: `dapo`."""
    scale_rewards: RewardScale | None = None
    """What the differences of an answer's reward from its group's mean are divided by; only with algorithm `GRPO`:
    the standard deviation of the `group`, or of all rewards of the step (`batch`), or nothing (`none`).
    Default: `group`."""
    mask_truncated_completions: Annotated[bool | None, AfterValidator(lambda value: value or None)] = None
    """Leave answers that were cut at `maxCompletionLength` out of the loss; their rewards still count in the mean of
    their group. Default: false."""
    rollouts: Rollouts | None = None
    """What samples the answers. Default: the model that is trained."""


class Distillation(Block):
    """Settings of objective Distillation, under TRL's names."""

    teacher: Teacher
    """The model whose probabilities the trained model learns; it is loaded in 16 bits next to it."""
    max_completion_length: Annotated[int, Field(ge=1, le=16384)] = 512
    """Maximum length of a sampled answer, in tokens. Default: 512."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Temperature of sampling, and of both models' probabilities when they are compared. Default: 1."""
    beta: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Divergence of a token's probabilities that is the loss: 0 = KL of the teacher from the model (forward), 1 = KL of
    the model from the teacher (reverse), between them the generalised Jensen-Shannon divergence. Default: 1."""
    shard_teacher: Annotated[bool | None, AfterValidator(lambda value: value or None)] = None
    """Share the teacher out over the job's GPUs: each holds a part of every layer and gathers one layer at a time, for
    teachers that do not fit one GPU next to the model. Needs several GPUs. Default: false, each GPU holds the whole
    teacher."""
