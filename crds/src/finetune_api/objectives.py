"""What a model can be trained for, and the settings that belong to one objective alone."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.blocks import Block, ModelUri, ObjectName, cel, rules


class Objective(StrEnum):
    """What the model is trained for."""

    INSTRUCTION = "Instruction"
    CHAT = "Chat"
    DPO = "DPO"
    KTO = "KTO"
    REWARD_MODEL = "RewardModel"
    RLHF = "RLHF"
    DOMAIN_ADAPTATION = "DomainAdaptation"


class LossType(StrEnum):
    """The loss of DPO, under TRL's names."""

    SIGMOID = "sigmoid"
    HINGE = "hinge"
    IPO = "ipo"


class Algorithm(StrEnum):
    """How a policy learns from rewards."""

    GRPO = "GRPO"
    RLOO = "RLOO"


class RewardType(StrEnum):
    """A reward that is computed, not learnt."""

    LENGTH = "Length"
    REGEX = "Regex"


class Dpo(Block):
    """Settings of objective DPO, under TRL's names."""

    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    """How strongly the model is held to the reference. Default: 0.1."""
    loss_type: LossType = LossType.SIGMOID
    """`sigmoid` (DPO), `hinge` (SLiC) or `ipo`. Default: `sigmoid`."""


class Kto(Block):
    """Settings of objective KTO, under TRL's names."""

    beta: Annotated[float, Field(gt=0, le=100)] = 0.1
    """How strongly the model is held to the reference. Default: 0.1."""
    desirable_weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Weight of the answers labelled good; raise it where they are few. Default: 1."""
    undesirable_weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Weight of the answers labelled bad; raise it where they are few. Default: 1."""


class JobReference(Block):
    """Another FineTuneJob of the same namespace."""

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
    """Folder of what objective RewardModel publishes, or of a sequence classification model with one label.
    Exclusive with `jobRef`. Default: the result of `jobRef`."""
    job_ref: JobReference | None = None
    """FineTuneJob with objective RewardModel that publishes it; this job waits until it is complete.
    Exclusive with `uri`. Default: none."""


class Reward(Block):
    """A reward that is computed from the answer's text."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "(self.type == 'Length') == has(self.targetTokens)",
                "targetTokens belongs to type Length, and Length needs it: set it, or remove it",
                ".targetTokens",
            ),
            cel(
                "(self.type == 'Regex') == has(self.pattern)",
                "pattern belongs to type Regex, and Regex needs it: set it, or remove it",
                ".pattern",
            ),
        )
    )

    type: RewardType
    """`Length`: 1 at `targetTokens`, falling linearly to 0 with the distance in tokens. `Regex`: 1 where `pattern` is
    found in the answer, else 0."""
    target_tokens: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Length (tokens) that earns the most; only with type `Length`. Default: none."""
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Regular expression (Python syntax) to find in the answer; only with type `Regex`. Default: none."""
    weight: Annotated[float, Field(ge=-1000, le=1000)] = 1.0
    """Factor of this reward in the sum; a negative one punishes. Default: 1."""


class Rlhf(Block):
    """Settings of objective RLHF, under TRL's names."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "has(self.rewardModel) != has(self.rewards)",
                "give either rewardModel or rewards: set one of the two",
                ".rewardModel",
            )
        )
    )

    algorithm: Algorithm = Algorithm.GRPO
    """`GRPO` or `RLOO`. Default: `GRPO`."""
    reward_model: RewardModelSource | None = None
    """A learnt reward; exclusive with `rewards`. Default: none."""
    rewards: (
        Annotated[
            list[Reward], Field(min_length=1, max_length=8, json_schema_extra={"x-kubernetes-list-type": "atomic"})
        ]
        | None
    ) = None
    """Computed rewards, added up by weight; exclusive with `rewardModel`. Default: none."""
    num_generations: Annotated[int, Field(ge=2, le=64)] = 4
    """Answers sampled for each prompt. Default: 4."""
    max_completion_length: Annotated[int, Field(ge=1, le=16384)] = 128
    """Longest sampled answer, in tokens. Default: 128."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Temperature of sampling. Default: 1."""
    beta: Annotated[float, Field(ge=0, le=100)] = 0.04
    """Weight of the divergence from the reference; 0 = no reference. Default: 0.04."""
