"""Inputs of a job: storage, hub, model and dataset."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api.blocks import (
    ATOMIC,
    ATOMIC_LIST,
    Block,
    DataUri,
    Endpoint,
    ModelUri,
    ObjectName,
    Revision,
    SecretRef,
    cel,
    with_rules,
)
from finetune_api.inputs.chat_template import KWARGS_RULE, ChatTemplate, ChatTemplateKwargs
from finetune_api.scalars import Digest

ColumnName = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,64}$")]
Columns = Annotated[
    dict[ColumnName, Annotated[str, StringConstraints(min_length=1, max_length=128)]],
    Field(min_length=1, max_length=16, json_schema_extra=ATOMIC),
]
MaxSamples = Annotated[int, Field(ge=1, le=100_000_000)]


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


_REVISION = cel(
    "!has(self.revision) || self.uri.startsWith('hf://')",
    "revision is only for hf:// URIs: remove it, or use an hf:// uri",
    ".revision",
)
_HUB_ONLY = (
    _REVISION,
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

    model_config = with_rules(*_HUB_ONLY, KWARGS_RULE)

    uri: ModelUri
    """The model, as `hf://owner/name`, or as a folder in storage, `s3://bucket/path`, or in a PersistentVolumeClaim of
    the job's namespace, `pvc://claim/path`: `config.json`, safetensors weights, `tokenizer.json`. Pickle weights, GGUF
    and models that need remote code are refused."""
    revision: Revision | None = None
    """Branch, tag or commit on the hub; the commit in use is `status.lineage.baseModelRevision`. Default: `main`."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the key `HF_TOKEN`, for gated and private models. Takes effect with the next attempt. Default: the
    operator's default token, if any."""
    chat_template: ChatTemplate | None = None
    """The chat template to train and to serve with; it is published next to the weights. Default: the model's own, else
    `ChatML`."""
    chat_template_kwargs: ChatTemplateKwargs | None = None
    """Variables of the chat template, for example `{enable_thinking: "false"}`. A value is a text in quotes; `true`,
    `false` and numbers in it are read as such. The published template has them as defaults. Default: none."""


class Teacher(Block):
    """The model that a student learns from; it is not trained and not published."""

    model_config = with_rules(*_HUB_ONLY)

    uri: ModelUri
    """The teacher, with the forms of `model.uri`. Its tokenizer and its number of tokens must be those of the model,
    which preflight checks."""
    revision: Revision | None = None
    """Branch, tag or commit on the hub; the commit in use is `status.lineage.teacherRevision`. Default: `main`."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the key `HF_TOKEN`, for gated and private models. Takes effect with the next attempt. Default: the
    operator's default token, if any."""


_SHA256 = cel(
    "!has(self.sha256) || (!self.uri.startsWith('hf://') && !self.uri.endsWith('/') && !self.uri.matches('[*?]'))",
    "sha256 is only for a single object: remove it, or give the full path of one in s3:// or pvc://",
    ".sha256",
)


_WHOLE_DATASET = "^hf://datasets/[^/]+/[^/]+/?$"
_SUBSET = "config and split are for a whole dataset of a hub, hf://datasets/owner/name: remove them, or the path in uri"
_CONFIG = cel(f"!has(self.config) || self.uri.matches('{_WHOLE_DATASET}')", _SUBSET, ".config")
_SPLIT = cel(f"!has(self.split) || self.uri.matches('{_WHOLE_DATASET}')", _SUBSET, ".split")
ConfigName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]*$")]
SplitName = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_]+([.][A-Za-z0-9_]+)*$")
]


class Sample(StrEnum):
    """Which rows of a source are used if not all are."""

    FIRST = "First"
    RANDOM = "Random"


class StoppingStrategy(StrEnum):
    """When a blend by weight ends."""

    FIRST_EXHAUSTED = "FirstExhausted"
    ALL_EXHAUSTED = "AllExhausted"


class TrainOn(StrEnum):
    """Which tokens of a conversation have a loss."""

    LAST_ANSWER = "LastAnswer"
    ALL_ANSWERS = "AllAnswers"
    EVERYTHING = "Everything"


class LongRows(StrEnum):
    """What happens to a row with more tokens than `maxLength`."""

    TRUNCATE = "Truncate"
    SKIP = "Skip"


class DataFiles(Block):
    """Files of rows."""

    model_config = with_rules(_REVISION, _SHA256, _CONFIG, _SPLIT)

    uri: DataUri
    """The rows: one object, `s3://bucket/key`; every data file under a prefix, `s3://bucket/path/`; the files that
    match a pattern, `s3://bucket/path/*.jsonl` (`**` matches any folders); the same in a PersistentVolumeClaim of the
    job's namespace, `pvc://claim/path`; or a dataset on a hub, `hf://datasets/owner/name`, optionally with a path or
    pattern. Files are JSON lines, JSON, CSV, TSV (each also as .gz, .bz2 or .zst), Parquet or Arrow."""
    sha256: Digest | None = None
    """Expected SHA-256 of the object (64 hexadecimal digits); the job fails if the content differs. Default: not
    checked."""
    revision: Revision | None = None
    """Branch, tag or commit on the hub. Default: `main`."""
    config: ConfigName | None = None
    """Subset of a dataset on a hub, as its card names it under `configs`, or a folder of that name. Default: the one
    that the card marks as default; a dataset whose card lists several subsets without a default is refused."""
    split: SplitName | None = None
    """Split of a dataset on a hub, for example `train_sft`. Default: `train`; for held-out rows `validation`, else
    `test`."""


class DataSource(DataFiles):
    """Source of rows."""

    model_config = with_rules(*_HUB_ONLY, _SHA256, _CONFIG, _SPLIT)

    credentials_secret_ref: SecretRef | None = None
    """Secret with the key `HF_TOKEN`, for gated and private datasets. Takes effect with the next attempt. Default: the
    operator's default token, if any."""


class BlendSource(DataFiles):
    """One of several sources of training rows."""

    weight: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Share of this source in the blend, relative to the weights of the others: of the trained tokens with objectives
    Instruction, Chat and DomainAdaptation, else of the rows. Give it to every source or to none. Default: none; every
    row is used."""
    max_samples: MaxSamples | None = None
    """Use at most this many accepted rows. Default: all."""
    sample: Sample = Sample.FIRST
    """Which rows are used if `weight` or `maxSamples` leave some out: the `First`, in file order, or
    `Random` ones, chosen by `hyperparameters.seed`. With `Random`, every row is read and checked. Default: `First`."""
    format: DatasetFormat | None = None
    """Format of the rows. Default: `dataset.format`."""
    columns: Columns | None = None
    """Column names, as in `dataset.columns`. Default: `dataset.columns`."""


UNIQUE_SOURCES = (
    "!has(self.sources) || self.sources.all(one, self.sources.exists_one(other, other.uri == one.uri && "
    "(has(other.config) ? other.config : '') == (has(one.config) ? one.config : '') && "
    "(has(other.split) ? other.split : '') == (has(one.split) ? one.split : '')))"
)


class TrainingData(DataSource):
    """Rows to train on: one source, or a blend of several."""

    model_config = with_rules(
        cel("has(self.uri) != has(self.sources)", "give either uri or sources: set one of the two", ".uri"),
        cel(
            "!has(self.revision) || (has(self.uri) && self.uri.startsWith('hf://'))",
            "revision is only for hf:// URIs: remove it, or use an hf:// uri; with sources, set it in each",
            ".revision",
        ),
        cel(
            "!has(self.sha256) || (has(self.uri) && !self.uri.startsWith('hf://') && !self.uri.endsWith('/') && "
            "!self.uri.matches('[*?]'))",
            "sha256 is only for a single object: remove it, or give the full path of one in s3:// or "
            "pvc://; with sources, set it in each",
            ".sha256",
        ),
        *(
            cel(
                f"!has(self.{name}) || (has(self.uri) && self.uri.matches('{_WHOLE_DATASET}'))",
                f"{_SUBSET}; with sources, set them in each",
                f".{name}",
            )
            for name in ("config", "split")
        ),
        cel(
            "!has(self.credentialsSecretRef) || (has(self.uri) && self.uri.startsWith('hf://')) || "
            "(has(self.sources) && self.sources.exists(one, one.uri.startsWith('hf://')))",
            "credentialsSecretRef is only for hf:// URIs: remove it, and set the keys of s3:// in spec.storage",
            ".credentialsSecretRef",
        ),
        cel(
            UNIQUE_SOURCES,
            "two sources have the same uri, config and split: remove one, or name other files in it",
            ".sources",
        ),
        cel(
            "!has(self.sources) || self.sources.all(one, has(one.weight)) || "
            "!self.sources.exists(one, has(one.weight))",
            "some sources have a weight and others none: give every source a weight, or remove all weights",
            ".sources",
        ),
        cel(
            "!has(self.stoppingStrategy) || (has(self.sources) && self.sources.exists(one, has(one.weight)))",
            "stoppingStrategy is only for a blend by weight: give every source a weight, or remove it",
            ".stoppingStrategy",
        ),
    )

    uri: DataUri | None = None  # type: ignore[assignment]
    """The rows of a single source, with the forms of `dataset.validation.uri`: one object, every data file under a
    prefix, the files that match a pattern, also in a PersistentVolumeClaim, or a dataset on a hub. Exclusive with
    `sources`. Default: `sources`."""
    sources: Annotated[list[BlendSource], Field(min_length=1, max_length=16, json_schema_extra=ATOMIC_LIST)] | None = (
        None
    )
    """Several sources, each with its own format and columns, that are trained on together; exclusive with `uri`. A row
    that repeats one of an earlier source is skipped. `credentialsSecretRef` is the token for all of them. Default:
    none."""
    stopping_strategy: StoppingStrategy | None = None
    """When a blend by weight ends: `FirstExhausted`, once a source has no more rows (no row is used twice), or
    `AllExhausted`, once every source was used up (the rows of smaller ones are repeated). Default:
    `FirstExhausted`."""

    @property
    def uris(self) -> list[str]:
        """The URI of each source."""
        single = [self.uri] if self.uri else []
        return [one.uri for one in self.sources] if self.sources else single

    @property
    def title(self) -> str:
        """The rows in a few words: the URI of the first source, and how many others there are."""
        first, *others = self.uris or [""]
        return f"{first} and {len(others)} more" if others else first


class Dataset(Block):
    """The rows to train on and to evaluate with."""

    model_config = with_rules(
        cel(
            "!(has(self.validation) && has(self.validationSplitPercent))",
            "give either validation or validationSplitPercent, not both: remove one",
            ".validationSplitPercent",
        ),
        cel(
            "!has(self.maxSamples) || !has(self.train.sources)",
            "maxSamples is for a single source: set it in each of train.sources",
            ".maxSamples",
        ),
    )

    train: TrainingData
    """Rows to train on: one source, or a blend of several."""
    validation: DataSource | None = None
    """Held-out rows to evaluate with; exclusive with `validationSplitPercent`. Rows that are also in `train` are
    dropped from `train` and counted."""
    validation_split_percent: Annotated[int, Field(ge=1, le=50)] | None = None
    """Share of the training rows (percent) held out for evaluation, chosen by a hash of the prompt so that a prompt is
    never in both parts. At least 20 and at most 512 rows, of at least ten prompts, or a quarter of all if there are
    fewer than 40. Default: no split."""
    format: DatasetFormat = DatasetFormat.AUTO
    """Format of the rows: `Alpaca`, `ShareGPT`, `OpenAI`, `Preference`, `Unpaired`, `PromptCompletion` or `Text`;
    `Auto` detects it row by row. Default: `Auto`."""
    columns: Columns | None = None
    """Column names: from the name that the format expects to the name in the files, for example `{prompt: question,
    completion: reply}`, or to a path inside a column, `{prompt: translation.en, answer: answers.text.0}`; `role` and
    `content` are names within each turn of a conversation. Default: the names in the files are used unchanged."""
    system_message: Annotated[str, StringConstraints(min_length=1, max_length=16_384)] | None = None
    """System message of the rows, and of `evaluation.prompts`, that have none of their own. Serve the result with it
    too. Not for plain text. Default: none is added."""
    max_rejected_percent: Annotated[int, Field(ge=0, le=100)] = 20
    """Maximum share of malformed rows (percent) of a source before the job fails; 100 = no limit. Malformed rows are
    reported and skipped. Default: 20."""
    max_samples: MaxSamples | None = None
    """Use at most this many accepted rows, in file order. With several sources, set it in each. Default: all."""
    long_rows: LongRows = LongRows.TRUNCATE
    """Rows with more tokens than `hyperparameters.maxLength`: `Truncate`, or `Skip`, which leaves them out of training
    and held-out rows. Both are counted. Not for plain text, which is split. Default: `Truncate`."""
    train_on: TrainOn | None = None
    """Tokens with a loss, with objectives Instruction and Chat: those of the `LastAnswer` of each row, of
    `AllAnswers`, or of `Everything` in the rendered conversation, questions and marks included. Answers and parts that
    a row excludes (`train: false`, `weight: 0`) never have one. Default: `LastAnswer` with objective Instruction,
    `AllAnswers` with Chat."""

    def training_sources(self) -> dict[str, BlendSource]:
        """Return each source of training rows by its path in the spec, with its own format, columns and limit."""
        train = self.train
        if train.sources is None:
            return {"dataset.train": self._with_defaults(_as_blend_source(train, self.max_samples))}
        return {f"dataset.train.sources[{at}]": self._with_defaults(one) for at, one in enumerate(train.sources)}

    def held_out_source(self) -> BlendSource | None:
        """Return the source of held-out rows with the dataset's format and columns, if there is one."""
        return self._with_defaults(_as_blend_source(self.validation)) if self.validation else None

    def _with_defaults(self, source: BlendSource) -> BlendSource:
        return source.model_copy(
            update={"format": source.format or self.format, "columns": source.columns or self.columns}
        )


def _as_blend_source(source: DataSource, max_samples: int | None = None) -> BlendSource:
    return BlendSource(max_samples=max_samples, **{name: getattr(source, name) for name in DataFiles.model_fields})
