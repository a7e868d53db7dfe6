"""Training samples of rows: token ids, labels, and the losses of truncation."""

from dataclasses import dataclass, field

from finetune_api.dataset.codes import RepairCode
from finetune_trainer.data.rows import Message, Reference, Tools

UNTRAINED = -100


def truncation_codes(left_out: int, answer_cut: int) -> tuple[RepairCode, ...]:
    """Return the repair codes for a row that lost `left_out` tokens and the ends of `answer_cut` answers."""
    return (*([RepairCode.TRUNCATED] if left_out else []), *([RepairCode.ANSWER_CUT] if answer_cut else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCounts:
    """The losses of a row that was turned into a sample.

    `truncated`: tokens were left out because of `max_length`; `left_out` counts those of the conversation or document
    that are not in this sample; `answer_cut` the trained answers that lost tokens, wholly or in part;
    `reasoning_lost` the trained answers whose reasoning the template does not show.
    """

    truncated: bool = False
    answer_cut: int = 0
    reasoning_lost: int = 0
    left_out: int = 0
    repairs: tuple[RepairCode, ...] = ()

    @property
    def length(self) -> int:
        """The tokens that the sample holds."""
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        """The tokens that the model reads."""
        return self.length


@dataclass(frozen=True, slots=True)
class Encoded(SampleCounts):
    """A text to train on; `labels` equals `input_ids` where a token is trained and is -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]
    trained: int

    @property
    def length(self) -> int:
        """The tokens of the text."""
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class EncodedPair(SampleCounts):
    """A prompt, which ends with the generation prompt, and two answers, each of which ends with its stop token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def tokens(self) -> int:
        """The tokens that the model reads: the prompt once with each answer."""
        return 2 * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)

    @property
    def length(self) -> int:
        """The tokens of the prompt with its longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def trained(self) -> int:
        """The tokens of both answers."""
        return len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(frozen=True, slots=True)
class EncodedLabelled(SampleCounts):
    """A prompt and one answer to it, with its label: desirable or not."""

    prompt_ids: list[int]
    completion_ids: list[int]
    desirable: bool

    @property
    def length(self) -> int:
        """The tokens of prompt and answer."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def trained(self) -> int:
        """The tokens of the answer."""
        return len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class EncodedPrompt(SampleCounts):
    """A prompt for the model to answer; its messages and its row's reference are for the reward functions."""

    prompt_ids: list[int]
    messages: list[Message] = field(default_factory=list)
    tools: Tools = None
    reference: Reference | None = None

    @property
    def length(self) -> int:
        """The tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def trained(self) -> int:
        """Zero: the answers are sampled during the training."""
        return 0


Sample = Encoded | EncodedPair | EncodedLabelled | EncodedPrompt
