"""Training objectives, and the settings that belong to one of them."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from finetune_api.blocks import ATOMIC_LIST, Block, cel, with_rule, with_rules
from finetune_api.inputs.sources import Teacher
from finetune_api.rewards import Reward, RewardModelSource


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


HAS_SMOOTHING = "!has(self.labelSmoothing) || self.lossType in ['robust', 'exo_pair']"


class Dpo(Block):
    """Settings of objective DPO, under TRL's names."""

    model_config = with_rule(
        HAS_SMOOTHING,
        "labelSmoothing is of losses robust and exo_pair: set lossType to one of them, or remove labelSmoothing",
        ".labelSmoothing",
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


HAS_SHARE = "self.engine == 'VLLM' || !has(self.gpuMemoryFraction)"


class Rollouts(Block):
    """How the answers are sampled that the model is trained on."""

    model_config = with_rule(
        HAS_SHARE,
        "gpuMemoryFraction is of engine VLLM: set engine VLLM, or remove gpuMemoryFraction",
        ".gpuMemoryFraction",
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

    model_config = with_rules(
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
