"""`FineTuneJob.spec.output`: where the result goes, and in what form."""

import re
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api.blocks import REPOSITORY, SET, Block, Revision, S3Uri, SecretRef, cel, matching, rules, with_rule
from finetune_api.scalars import Line, Name, StatusBlock, Uri

REPO = re.compile(f"^{REPOSITORY}$")
COMMIT = re.compile("^[0-9a-f]{40}$")
_REPO_MESSAGE = "must be owner/name of a repository for models, without hf:// and the hub's address"
_LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_HOST = f"(({_LABEL}([.]{_LABEL})+|localhost)(:[1-9][0-9]{{0,4}})?|{_LABEL}:[1-9][0-9]{{0,4}})"
IMAGE_REPOSITORY = re.compile(f"^{_HOST}(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)+$")
_IMAGE_MESSAGE = (
    "must be host/path of a repository, in lower case and with the registry's host: without https://, tag and digest, "
    "for example registry.example.com/team/helpdesk"
)
LONGEST_TAG = 120
"""A tag has 128 characters, of which a suffix has 8."""


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

    model_config = with_rule(
        f"!self.revision.matches('{COMMIT.pattern}')",
        "a push goes to a branch, and revision is a commit: write the name of a branch, for example main",
        ".revision",
    )

    repo: Annotated[
        str,
        StringConstraints(min_length=3, max_length=193),
        matching(REPO, _REPO_MESSAGE),
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


class PackageFormat(StrEnum):
    """What a registry gets: an image, which nodes mount and KServe serves, or a ModelPack artifact of plain files."""

    IMAGE = "Image"
    MODEL_PACK = "ModelPack"


class OciOutput(Block):
    """Also push the published result to an OCI registry."""

    repository: Annotated[
        str,
        StringConstraints(min_length=3, max_length=255),
        matching(IMAGE_REPOSITORY, _IMAGE_MESSAGE),
        Field(json_schema_extra=rules(cel(f"self.matches('{IMAGE_REPOSITORY.pattern}')", _IMAGE_MESSAGE))),
    ]
    """Repository, as `host/path` without a tag, for example `registry.example.com/team/helpdesk`."""
    tag: (
        Annotated[
            str, StringConstraints(min_length=1, max_length=LONGEST_TAG, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
        ]
        | None
    ) = None
    """Tag of the full model, or without one of the adapter. The adapter of a job with a full model has this tag with
    `-adapter`, GGUF files have it with `-gguf`. A tag that exists is moved. Default: the job's name."""
    format: PackageFormat = PackageFormat.IMAGE
    """`Image`: a container image with the files in `/models`, for image volumes, KServe's `oci+native://` and
    `docker pull`. `ModelPack`: an artifact of plain files by the CNCF ModelPack specification, for `modctl`, KitOps and
    `oras pull`; containerd cannot mount it. Default: `Image`."""
    insecure: bool = False
    """Connect without TLS, also with a password: for a registry within the cluster. Default: false."""
    credentials_secret_ref: SecretRef | None = None
    """Secret of type `kubernetes.io/dockerconfigjson` with an entry for the registry, whose user may push. Default:
    none, for a registry without users."""
    ca_secret_ref: SecretRef | None = None
    """Secret with the key `ca.crt` (PEM): an authority to trust for the registry, in addition to the image's. Default:
    none."""

    @property
    def host(self) -> str:
        """Return the registry, with its port."""
        return self.repository.partition("/")[0]

    @property
    def endpoint(self) -> str:
        """Return the registry's URL."""
        return f"{'http' if self.insecure else 'https'}://{self.host}"

    def tag_of(self, name: str) -> str:
        """Return the tag for a job of this name."""
        return self.tag or name[:LONGEST_TAG]


class Output(Block):
    """Destination and form of the result."""

    model_config = with_rule(
        "!has(self.gguf) || self.merge != 'None'",
        "GGUF files are made from the full model: set output.merge to BF16, FP16 or FP32",
        ".gguf",
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
    oci: OciOutput | None = None
    """Also push the full model, the adapter and GGUF files to an OCI registry, once they are published under `uri`. A
    push that fails does not fail the job: condition RegistryPushed has the cause. Takes effect with the next attempt.
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


Reference = Annotated[Uri, StringConstraints(max_length=328)]


class RegistryPush(StatusBlock):
    """What was pushed to a registry, or why not."""

    repository: Annotated[Uri, StringConstraints(max_length=255)]
    """Repository, as `host/path`."""
    tag: Annotated[Name, StringConstraints(max_length=128)] | None = None
    """Tag of `reference`, when it was pushed."""
    reference: Reference | None = None
    """The full model, or without one the adapter, as `host/path@sha256:DIGEST`; absent if the push failed."""
    adapter_reference: Reference | None = None
    """The adapter, if `reference` is the full model."""
    gguf_reference: Reference | None = None
    """The GGUF files, if the job publishes some."""
    message: Line | None = None
    """Why the push failed, in one line, with the fix."""
