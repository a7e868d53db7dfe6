"""`FineTuneJob.spec.output`: where the result goes, and in what form."""

import re
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from finetune_api.blocks import REPOSITORY, SET, Block, Revision, S3Uri, SecretRef, cel, rules
from finetune_api.scalars import Line, Name, StatusBlock, Uri

REPO = re.compile(f"^{REPOSITORY}$")
COMMIT = re.compile("^[0-9a-f]{40}$")
_REPO_MESSAGE = "must be owner/name of a repository for models, without hf:// and the hub's address"


def _require_repo(value: str) -> str:
    if not REPO.fullmatch(value):
        raise ValueError(_REPO_MESSAGE)
    return value


class Merge(StrEnum):
    """Number format of the merged model, if one is published."""

    NONE = "None"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


class GgufType(StrEnum):
    """Type of the weights in a GGUF file, by llama.cpp's names; the digit is the number of bits."""

    BF16 = "BF16"
    F16 = "F16"
    Q8_0 = "Q8_0"
    Q6_K = "Q6_K"
    Q5_K_M = "Q5_K_M"
    Q4_K_M = "Q4_K_M"


class HubOutput(Block):
    """Also push the published result to a Hugging Face hub."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                f"!self.revision.matches('{COMMIT.pattern}')",
                "a push goes to a branch, and revision is a commit: write the name of a branch, for example main",
                ".revision",
            )
        )
    )

    repo: Annotated[
        str,
        StringConstraints(min_length=3, max_length=193),
        AfterValidator(_require_repo),
        Field(json_schema_extra=rules(cel(f"self.matches('{REPO.pattern}')", _REPO_MESSAGE))),
    ]
    """Repository for models, as `owner/name`, on the hub of `spec.hub`. One that does not exist is created."""
    private: bool = True
    """Create the repository as private. One that is public already is refused as long as this is true; one that is
    private stays private. Default: true."""
    revision: Revision = "main"
    """Branch to push to; one that does not exist is created. Default: `main`."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the key `HF_TOKEN`, whose token may write to the repository. Default: the operator's
    `defaultHub.tokenSecret`, if the job names no other hub."""


class Output(Block):
    """Destination and form of the result."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.gguf) || self.merge != 'None'",
                "GGUF files are made from the full model: set output.merge to BF16, FP16 or FP32",
                ".gguf",
            )
        )
    )

    uri: S3Uri
    """Prefix for adapter, report, lineage and manifest, as `s3://bucket/path`. One prefix belongs to one job."""
    merge: Merge = Merge.NONE
    """Also publish the base with the adapter merged in, in this number format. Default: `None`."""
    gguf: Annotated[list[GgufType], Field(min_length=1, max_length=len(GgufType), json_schema_extra=SET)] | None = None
    """Also publish the full model as GGUF, for llama.cpp and Ollama, in `gguf/`: one file of each type, loaded with
    llama.cpp and compared with the full model, and a Modelfile. A file that differs too much is not published.
    Default: none."""
    hub: HubOutput | None = None
    """Also push the full model, or without one the adapter, to a Hugging Face hub, once it is published under `uri`. A
    push that fails does not fail the job: condition HubPushed has the cause. Takes effect with the next attempt.
    Default: none."""


class HubPush(StatusBlock):
    """What was pushed to a hub, or why not."""

    repo: Annotated[Name, StringConstraints(max_length=193)]
    """Repository, as `owner/name`."""
    revision: Annotated[Name, StringConstraints(max_length=128)] | None = None
    """Branch."""
    commit: Annotated[Name, StringConstraints(max_length=64)] | None = None
    """Commit that has the files; absent if the push failed."""
    url: Uri | None = None
    """Address of the commit's files; absent if the push failed."""
    message: Line | None = None
    """Why the push failed, in one line, with the fix."""
