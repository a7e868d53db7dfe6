"""The input of the process that makes and reads GGUF files: a JSON file. Its output is a `GateReply`."""

from pathlib import Path

from pydantic import BaseModel

from finetune_trainer.data.rows import Message


class GgufFile(BaseModel):
    """A file to write, and its type."""

    type: str
    path: Path


class GgufPlan(BaseModel):
    """The full model, the same weights as GGUF, and the files to make of them."""

    model: Path
    precision: str
    """Number format of the full model."""
    converted: GgufFile
    files: list[GgufFile]
    samples: list[tuple[list[int], list[int]]]
    """Token ids and labels of held-out rows."""
    prompts: list[list[Message]]
    stop_ids: list[int]
    max_new_tokens: int
