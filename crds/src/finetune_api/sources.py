"""Inputs of a job: storage, hub, model and dataset."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.blocks import (
    ATOMIC,
    Block,
    DataUri,
    Endpoint,
    ModelUri,
    ObjectName,
    Revision,
    SecretRef,
    cel,
    rules,
)

ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z_]+$")]


class DatasetFormat(StrEnum):
    """Format of the dataset's rows."""

    AUTO = "Auto"
    ALPACA = "Alpaca"
    SHAREGPT = "ShareGPT"
    OPENAI = "OpenAI"
    PREFERENCE = "Preference"
    UNPAIRED = "Unpaired"
    PROMPT_COMPLETION = "PromptCompletion"
    TEXT = "Text"


class Storage(Block):
    """S3-compatible storage for every `s3://` URI of the job."""

    endpoint: Endpoint | None = None
    """URL of the S3 endpoint, for example `http://minio.minio:9000`.
    Default: the operator's default storage, else AWS."""
    region: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$")] | None = None
    """Region to sign requests for. Default: `us-east-1`."""
    force_path_style: bool | None = None
    """Address buckets as `endpoint/bucket` instead of `bucket.endpoint`.
    Default: true when `endpoint` is set, else false."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key `ca.crt` holds the certificate authority (PEM) of the endpoint.
    Default: the image's authorities."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the keys `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, optionally, `AWS_SESSION_TOKEN`.
    Default: the credential chain of the pod's service account."""


_HUB_ONLY = (
    cel(
        "!has(self.revision) || self.uri.startsWith('hf://')",
        "revision is only for hf:// URIs: remove it, or use an hf:// uri",
        ".revision",
    ),
    cel(
        "!has(self.credentialsSecretRef) || self.uri.startsWith('hf://')",
        "credentialsSecretRef is only for hf:// URIs: remove it, and set the keys of s3:// in spec.storage",
        ".credentialsSecretRef",
    ),
)


class Hub(Block):
    """The Hugging Face hub, or a mirror of it, for every `hf://` URI of the job."""

    endpoint: Endpoint | None = None
    """URL of the hub or its mirror. Default: the operator's default hub, else `https://huggingface.co`."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key `ca.crt` holds the certificate authority (PEM) of the endpoint.
    Default: the image's authorities."""


class ModelCache(Block):
    """A folder of downloaded models that runs share."""

    claim_name: ObjectName
    """Name of a PersistentVolumeClaim in the job's namespace; it must be `ReadWriteMany` if jobs run on several
    nodes."""


class Model(Block):
    """The pretrained model to adapt."""

    model_config = ConfigDict(json_schema_extra=rules(*_HUB_ONLY))

    uri: ModelUri
    """The model, as `hf://owner/name` or as a folder in storage, `s3://bucket/path`: `config.json`, safetensors
    weights, `tokenizer.json`. Pickle weights, GGUF and models that need remote code are refused."""
    revision: Revision | None = None
    """Branch, tag or commit on the hub; the commit in use is `status.lineage.baseModelRevision`. Default: `main`."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the key `HF_TOKEN`, for gated and private models. Takes effect with the next attempt. Default: the
    operator's default token, if any."""


class DataSource(Block):
    """Source of rows."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *_HUB_ONLY,
            cel(
                "!has(self.sha256) || "
                "(self.uri.startsWith('s3://') && !self.uri.endsWith('/') && !self.uri.matches('[*?]'))",
                "sha256 is only for a single object: remove it, or give the full key of one s3:// object",
                ".sha256",
            ),
        )
    )

    uri: DataUri
    """The rows: one object, `s3://bucket/key`; every data file under a prefix, `s3://bucket/path/`; the files that
    match a pattern, `s3://bucket/path/*.jsonl` (`**` matches any folders); or a dataset on a hub,
    `hf://datasets/owner/name`, optionally with a path or pattern. Files are JSON lines, JSON, CSV, TSV (each also
    gzipped), Parquet or Arrow."""
    sha256: Annotated[str, StringConstraints(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")] | None = None
    """Expected SHA-256 of the object (64 hexadecimal digits); the job fails if the content differs. Default: not
    checked."""
    revision: Revision | None = None
    """Branch, tag or commit on the hub. Default: `main`."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the key `HF_TOKEN`, for gated and private datasets. Takes effect with the next attempt. Default: the
    operator's default token, if any."""


class Dataset(Block):
    """The rows to train on and to evaluate with."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!(has(self.validation) && has(self.validationSplitPercent))",
                "give either validation or validationSplitPercent, not both: remove one",
                ".validationSplitPercent",
            )
        )
    )

    train: DataSource
    """Rows to train on."""
    validation: DataSource | None = None
    """Held-out rows to evaluate with; exclusive with `validationSplitPercent`. Rows that are also in `train` are
    dropped from `train` and counted."""
    validation_split_percent: Annotated[int, Field(ge=1, le=50)] | None = None
    """Share of the training rows (percent) held out for evaluation, chosen by a hash of the prompt so that a prompt is
    never in both parts. At least 20 and at most 512 rows. Default: no split."""
    format: DatasetFormat = DatasetFormat.AUTO
    """Format of the rows: `Alpaca`, `ShareGPT`, `OpenAI`, `Preference`, `Unpaired`, `PromptCompletion` or `Text`;
    `Auto` detects it row by row. Default: `Auto`."""
    columns: (
        Annotated[
            dict[ColumnName, Annotated[str, StringConstraints(min_length=1, max_length=128)]],
            Field(min_length=1, max_length=16, json_schema_extra=ATOMIC),
        ]
        | None
    ) = None
    """Column names: from the name that the format expects to the name in the files, for example `{prompt: question,
    completion: reply}`; `role` and `content` are names within each turn of a conversation. Default: the names in the
    files are used unchanged."""
    max_rejected_percent: Annotated[int, Field(ge=0, le=100)] = 20
    """Maximum share of malformed rows (percent) before the job fails; 100 = no limit. Malformed rows are reported and
    skipped. Default: 20."""
    max_samples: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Use at most this many accepted rows, in file order. Default: all."""
