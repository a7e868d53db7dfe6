"""`FineTuneRelease`: which published result a server answers with, and what its pod reports."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.blocks import (
    ATOMIC,
    Block,
    Endpoint,
    ObjectName,
    S3Uri,
    SecretRef,
    cel,
    map_list,
    with_rule,
    with_rules,
)
from finetune_api.handoff import HandoffBlock
from finetune_api.inputs.sources import Storage
from finetune_api.scalars import MAX_INTEGER, Count, Digest, Line, Measure, Name, StatusBlock, Time, Uri, Word
from finetune_api.status import Condition

AdapterName = Annotated[str, StringConstraints(max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Rollback(StrEnum):
    """What happens if the server fails once the result has its name."""

    ON_FAILURE = "OnFailure"
    NEVER = "Never"


class FineTuneJobRef(Block):
    """A FineTuneJob in the release's namespace."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    name: ObjectName
    """Name of the FineTuneJob."""


class ServerService(Block):
    """A Service in the release's namespace."""

    name: ObjectName
    """Name of the Service."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the Service. Default: 8000."""


class AdapterVolume(Block):
    """A folder that the release's pod writes and the server reads."""

    claim_name: ObjectName
    """Name of a PersistentVolumeClaim in the release's namespace, which must be on the operator's list of model cache
    claims. The server mounts it too: it is `ReadWriteMany` if they run on several nodes."""
    path: Annotated[str, StringConstraints(max_length=256, pattern=r"^(/[A-Za-z0-9._-]+)+$")]
    """Where the server mounts the claim, for example `/adapters`."""


class VLLMTarget(Block):
    """An adapter of a running vLLM server, which must allow that adapters are loaded at run time."""

    model_config = with_rules(
        cel("has(self.url) != has(self.service)", "give exactly one of url and service: the address of the server"),
        cel(
            "!has(self.caSecretRef) || (has(self.url) && self.url.startsWith('https://'))",
            "caSecretRef is only for a server with TLS: give an https url in place of service, or remove it",
            ".caSecretRef",
        ),
    )

    url: Endpoint | None = None
    """URL of the server without `/v1`, for example `http://vllm.serving:8000`; exactly one pod answers there."""
    service: ServerService | None = None
    """Service of the server, in place of `url`, with exactly one pod."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the key `VLLM_API_KEY`, the key that the server was started with (the variable of that name, or
    `--api-key`). It is sent in each request's `Authorization`. Default: no key."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key `ca.crt` holds the certificate authority (PEM) of an `https` url.
    Default: the image's authorities."""
    adapter_name: AdapterName
    """Name of the model in requests, which the released result answers."""
    volume: AdapterVolume
    """Where the adapter's files are copied to, because vLLM loads adapters from a folder."""

    def find_address(self, namespace: str) -> str:
        """Return the server's URL without `/v1`; a Service is one of the namespace."""
        service = self.service
        return f"http://{service.name}.{namespace}.svc:{service.port}" if service else self.url or ""


class KServeTarget(Block):
    """An adapter of an existing LLMInferenceService of KServe."""

    name: ObjectName
    """Name of the LLMInferenceService in the release's namespace; its entry of `spec.model.lora.adapters` is set."""
    adapter_name: AdapterName
    """Name of the entry, and of the model in requests."""


class FilesTarget(Block):
    """A prefix in storage with one small object that names the released result."""

    uri: S3Uri
    """The prefix; the object is `release.json` under it, and replaced by one write. It is in the storage of the result,
    for example `s3://serving/support-bot`."""


class Target(Block):
    """What answers with the result."""

    model_config = with_rule(
        "(has(self.vllm) ? 1 : 0) + (has(self.kserve) ? 1 : 0) + (has(self.files) ? 1 : 0) == 1",
        "give exactly one of vllm, kserve and files",
    )

    vllm: VLLMTarget | None = None
    """Exactly one vLLM server pod: the adapter is loaded, asked, and gets the name of the one before it. A load reaches
    one pod only, so an address of several is refused."""
    kserve: KServeTarget | None = None
    """An LLMInferenceService of KServe, whose controller restarts the server with the adapter."""
    files: FilesTarget | None = None
    """A pointer in storage, for servers that are started with it."""


class Require(Block):
    """Conditions of a release, in addition to the digest of every file that is released, which is always verified. A
    result that did not pass its own gate, or whose verdict is `Worse`, is never released."""

    verdict: Literal["Better"] | None = None
    """Required verdict of the job's own evaluation. Default: any but `Worse`."""
    gate: Literal["Passed"] | None = None
    """Required result of `evaluation.gate`: `Passed` refuses a result whose job had none. Default: any but `NotMet`."""
    matched_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Smallest share (percent) of the job's `evaluation.prompts` with `expected` whose answer by the server matches.
    Only with `target.vllm`. Default: no limit."""
    tokens: Literal["Any"] | None = None
    """Which tokens the server reads. `Any` releases also if its chat template or tokenizer gives others than those that
    the result was trained on. Only with `target.vllm`. Default: those of the training, else the release is `Refused`
    with the flag of the server that is missing."""


class FineTuneReleaseSpec(Block):
    """Which result is released, to where, and under which conditions. An edit releases again."""

    model_config = with_rules(
        cel("has(self.jobRef) != has(self.uri)", "give exactly one of jobRef and uri: the result to release"),
        cel(
            "has(self.uri) == has(self.manifestSHA256)",
            "uri needs manifestSHA256, and jobRef excludes it: status.artifacts of the job has both",
            ".manifestSHA256",
        ),
        cel(
            "!has(self.storage) || has(self.uri)",
            "storage is only for uri: with jobRef, the job's own storage is used",
            ".storage",
        ),
        cel(
            "!has(self.require) || !has(self.require.matchedPercent) || has(self.target.vllm)",
            "matchedPercent needs a server that is asked: use target.vllm, or remove it",
            ".require.matchedPercent",
        ),
        cel(
            "!has(self.require) || !has(self.require.tokens) || has(self.target.vllm)",
            "tokens needs a server that is asked: use target.vllm, or remove it",
            ".require.tokens",
        ),
    )

    job_ref: FineTuneJobRef | None = None
    """The job whose result is released, once it is complete. Its storage, credentials and images are used."""
    uri: S3Uri | None = None
    """Prefix of the result, in place of `jobRef`: `output.uri` of its job."""
    manifest_sha256: Digest | None = None
    """SHA-256 of the result's `manifest.json`; required with `uri`."""
    storage: Storage | None = None
    """Storage of `uri`. Default: the operator's default storage."""
    target: Target
    """What answers with the result; exactly one."""
    require: Require | None = None
    """Conditions of the release. Default: the digests alone."""
    rollback: Rollback = Rollback.ON_FAILURE
    """What happens if the server fails once the result has its name: `OnFailure` gives the name back to the result
    before it, `Never` leaves it. Default: `OnFailure`."""
    progress_deadline_seconds: Annotated[int, Field(ge=30, le=86_400)] = 900
    """Longest time of a release, in seconds, from when its Job may start its pod. Time in a queue or suspended does not
    count, and a Job that is stopped has the whole time again. Default: 900."""


class ReleasedResult(StatusBlock):
    """A published result."""

    uri: Uri
    """Prefix of the result."""
    manifest_sha256: Digest
    """SHA-256 of its manifest."""
    released_time: Time | None = None
    """Since when it answers."""


class ReleaseComparison(StatusBlock):
    """The result that answered before (champion) and the new one (challenger), asked the same through the server."""

    verdict: Word | None = None
    """Whether the challenger is `Better` or `Worse` on the job's held-out rows: the 95 % interval of the difference
    excludes zero. Else `NoMeasurableDifference` or `NotEvaluated`."""
    rows: Count | None = None
    """Held-out rows that were asked."""
    champion_loss: Measure | None = None
    """Loss of the champion on the rows' last answers, in nats per token."""
    challenger_loss: Measure | None = None
    """Loss of the challenger."""
    difference_low: Measure | None = None
    """Lower end of the 95 % interval of `challengerLoss` minus `championLoss`."""
    difference_high: Measure | None = None
    """Upper end of this interval."""
    champion_matched_percent: Measure | None = None
    """Share of the prompts with `expected` that the champion's answer matches, in percent."""
    challenger_matched_percent: Measure | None = None
    """Share of these prompts that the challenger's answer matches, in percent."""


class ReleaseRefusal(StatusBlock):
    """A result that was not released, or that was taken back."""

    manifest_sha256: Digest | None = None
    """SHA-256 of its manifest."""
    refused_time: Time
    """When it was refused."""
    reason: Word
    """Reason of condition `Released` then."""
    message: Line
    """The cause, in the server's own words where it is the server's, with the fix."""


class AdapterTrial(StatusBlock):
    """The entry of an LLMInferenceService in which a result is tried."""

    name: ObjectName
    """Name of the LLMInferenceService."""
    adapter_name: AdapterName
    """Name of the entry."""
    problem: Line | None = None
    """Why the entry gets its former URI again; absent until then."""


class ReleaseConditionType(StrEnum):
    """The condition types of a FineTuneRelease; the last two are the kstatus convention."""

    READY = "Ready"
    RELEASED = "Released"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class ReleaseReason(StrEnum):
    """The reasons of a FineTuneRelease."""

    WAITING_FOR_JOB = "WaitingForJob"
    RELEASING = "Releasing"
    WAITING_FOR_SERVER = "WaitingForServer"
    RELEASED = "Released"
    HELD = "Held"
    REFUSED = "Refused"
    ROLLED_BACK = "RolledBack"
    FAILED = "Failed"
    FORBIDDEN = "Forbidden"
    INVALID_SPEC = "InvalidSpec"
    JOB_FAILED = "JobFailed"
    TARGET_MISSING = "TargetMissing"
    NAME_CONFLICT = "NameConflict"
    API_DENIED = "APIDenied"


class ReleaseCondition(Condition):
    """A `metav1.Condition`."""

    type: Annotated[str, StringConstraints(max_length=64)]
    """Name of the condition. `Ready`: the requested result answers. `Released`: the same; if false, the reason names
    what happened instead. `Reconciling` and `Stalled` are for GitOps tools: the operator works on it; it does not,
    until the spec changes."""


class FineTuneReleaseStatus(StatusBlock):
    """Observed state of the release; the conditions are authoritative."""

    observed_generation: Annotated[int, Field(ge=-1, le=MAX_INTEGER)] | None = None
    """Generation of the spec that this status describes; -1 = not observed yet."""
    reason: Word | None = None
    """Reason of condition `Ready`."""
    message: Annotated[str, StringConstraints(max_length=2048)] | None = None
    """Message of condition `Ready`."""
    conditions: Annotated[list[ReleaseCondition], Field(max_length=8, json_schema_extra=map_list("type"))] | None = None
    """The state as `metav1.Condition`s."""
    answering: ReleasedResult | None = None
    """The result that answers now, as far as this release has set it."""
    previous: ReleasedResult | None = None
    """The result that answered before: its `uri` and `manifestSHA256` in the spec roll back."""
    candidate: ReleasedResult | None = None
    """The result of the observed generation, with the digest that `jobRef` had when it began."""
    comparison: ReleaseComparison | None = None
    """How the last candidate that has ended compared with the result before it; absent if it was not compared, for
    example without `target.vllm`."""
    last_refusal: ReleaseRefusal | None = None
    """The last result that was not released."""
    replaced_adapter_uri: Uri | None = None
    """URI that the entry of the LLMInferenceService had before, for a rollback, and empty if there was none; only with
    `target.kserve`, while the release waits for the server."""
    trial: AdapterTrial | None = None
    """The entry of the LLMInferenceService that has `replacedAdapterURI` for a rollback: an edit of the target does not
    change it."""
    job_name: Name | None = None
    """Name of the batch/v1 Job of the observed generation."""

    def condition(self, kind: str) -> ReleaseCondition | None:
        """Return the condition of that type, or None."""
        return next((one for one in self.conditions or [] if one.type == kind), None)


class ReleaseConfig(HandoffBlock):
    """The configuration of a release's pod: one JSON file from an immutable ConfigMap."""

    namespace: str
    """Namespace of the FineTuneRelease."""
    name: str
    """Name of the FineTuneRelease."""
    uid: str
    """UID of the FineTuneRelease."""
    generation: Count
    """Generation of its spec."""
    candidate: ReleasedResult
    """The result to release."""
    answering: ReleasedResult | None = None
    """The result that answers now, by the release's status."""
    storage: Storage | None = None
    """Storage of the result, with the operator's default filled in."""
    target: Target
    """As in the spec."""
    require: Require | None = None
    """As in the spec."""
    rollback: Rollback = Rollback.ON_FAILURE
    """As in the spec."""


class ReleaseOutcome(StrEnum):
    """How a release's pod ended; a value is the reason of condition `Released`, except `Verified`."""

    VERIFIED = "Verified"
    RELEASED = "Released"
    HELD = "Held"
    REFUSED = "Refused"
    ROLLED_BACK = "RolledBack"
    FAILED = "Failed"


class ReleaseReport(HandoffBlock):
    """The termination message of a release's pod; untrusted until UID and generation are checked."""

    outcome: ReleaseOutcome
    """How the pod ended; `Verified` if the operator sets the target."""
    message: Line
    """One line, with the fix if there is one."""
    release_uid: Word
    """Echo of the FineTuneRelease's UID."""
    generation: Count
    """Echo of its generation."""
    answering: ReleasedResult | None = None
    """The result that answers now, if the pod has established that."""
    replaced: ReleasedResult | None = None
    """The result that answered before."""
    comparison: ReleaseComparison | None = None
    """How the two compared."""
