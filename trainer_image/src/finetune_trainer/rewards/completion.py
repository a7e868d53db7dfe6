"""A sampled answer, as rewards read it."""

from dataclasses import dataclass

from finetune_trainer.data.rows import Message, Reference, Tools


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a prompt; `ended` is whether it has an end token, which `tokens` does not count."""

    prompt: list[Message]
    text: str
    tokens: int
    ended: bool
    tools: Tools = None
    reference: Reference | None = None
