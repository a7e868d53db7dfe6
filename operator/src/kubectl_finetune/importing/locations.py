"""URIs of models, rows and results: hub repositories and buckets are carried, local paths become placeholders."""

import os
import re
from dataclasses import dataclass, field

from finetune_api.blocks import DATA_URI, MODEL_URI
from kubectl_finetune.importing.draft import Draft, Key
from kubectl_finetune.importing.files import hide_secrets
from kubectl_finetune.manifest.fixes import FILL_IN

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
DATA_FILE = re.compile(r"[.](jsonl?|ndjson|csv|tsv|parquet|arrow|txt|gz|zst)$")
FIRST_ROWS = re.compile(r"train\[:(\d+)(%?)\]")


@dataclass
class RowSource:
    """One source of training rows."""

    key: Key
    uri: str
    revision: str = ""
    max_samples: int | None = None
    fraction: float | None = None
    format: str = ""
    columns: dict[str, str] = field(default_factory=dict)


def put_model(draft: Draft, key: str, field_path: str = "model.uri") -> None:
    """Set the URI of the model, or of an adapter."""
    given = draft.options.model if field_path == "model.uri" else ""
    value = str(draft.get(key) or "")
    uri = given or _model_uri(value)
    if not uri:
        fix = f"write hf://owner/name or s3://bucket/path{', or use --model' if field_path == 'model.uri' else ''}"
        uri = _fill_in(draft, field_path, value or "model", key, fix)
    draft.set(field_path, uri, "--model" if given else key)


def put_result(draft: Draft, key: str) -> None:
    """Set the prefix of the result."""
    uri, value = draft.options.result, str(draft.get(key) or "")
    if not uri:
        uri = value if value.startswith("s3://") else ""
    uri = uri or _fill_in(draft, "output.uri", value or "result", key, "use --result")
    draft.set("output.uri", uri, "--result" if draft.options.result else key)


def is_local(value: str) -> bool:
    """Return whether other projects would read the value from the disk."""
    return value.startswith(("/", "./", "../", "~")) or bool(DATA_FILE.search(value)) or os.path.exists(value)


def hub_id(value: str) -> bool:
    """Return whether the value is the name of a repository on the hub."""
    return bool(REPOSITORY.fullmatch(value)) and not is_local(value)


def _model_uri(value: str) -> str:
    if MODEL_URI.fullmatch(value):
        return value
    return f"hf://{value}" if hub_id(value) else ""


def row_source(
    draft: Draft, key: Key, name: str, *, files: object = None, split: str = "", config: str = "", on_hub: bool = True
) -> RowSource:
    """Return where the rows are: a repository or a bucket, else the local path with the mark of a placeholder."""
    paths = [files] if isinstance(files, str) else [str(one) for one in files] if isinstance(files, list) else []
    if DATA_URI.fullmatch(name) or (on_hub and hub_id(name)):
        uri = name if DATA_URI.fullmatch(name) else f"hf://datasets/{name}"
        source = RowSource(key, f"{uri.rstrip('/')}/{paths[0].removeprefix('./')}" if paths else uri)
    else:
        source = RowSource(key, FILL_IN + (paths[0] if paths and not is_local(name) else name))
    if len(paths) > 1:
        draft.lose(key, "only the first of its files is read", "name all with a pattern in dataset.train.uri")
    if config:
        reason = f"the configuration {config} is not chosen: the files of all are read"
        draft.lose(key, reason, "name its folder in dataset.train.uri")
    _choose_split(draft, source, key, split)
    return source


def _choose_split(draft: Draft, source: RowSource, key: Key, split: str) -> None:
    if split in {"", "train"}:
        return
    if found := FIRST_ROWS.fullmatch(split.replace(" ", "")):
        if found[2]:
            source.fraction = int(found[1]) / 100
        else:
            source.max_samples = int(found[1])
        return
    draft.lose(key, f"the split {split} is not chosen: the files of train are read", "name its files in the URI")


def put_train(draft: Draft, sources: list[RowSource]) -> None:
    """Set the rows to train on."""
    if draft.options.data:
        sources = [RowSource("--data", draft.options.data, columns=sources[0].columns if sources else {},
                             format=sources[0].format if sources else "")]  # fmt: skip
    if not sources:
        sources = [RowSource("data", f"{FILL_IN}rows")]
    first, *others = sources
    _put_source(draft, "dataset.train", first, "--data")
    if first.format:
        draft.set("dataset.format", first.format, first.key)
    if first.columns:
        draft.set("dataset.columns", first.columns, first.key)
    if first.max_samples:
        draft.set("dataset.maxSamples", first.max_samples, first.key)
    if first.fraction:
        reason = f"a part of the rows cannot be chosen: all are used, not {first.fraction:.0%}"
        draft.lose(first.key, reason, "set dataset.maxSamples")
    for other in others:
        reason = "a job reads one source, the first"
        draft.lose(other.key, reason, "put the rows of all under one prefix, and use --data s3://bucket/prefix/")


def put_validation(draft: Draft, sources: list[RowSource]) -> None:
    """Set the held-out rows."""
    if draft.options.validation:
        sources = [RowSource("--validation", draft.options.validation)]
    if not sources:
        return
    _put_source(draft, "dataset.validation", sources[0], "--validation")
    for other in sources[1:]:
        draft.lose(other.key, "a job has one source of held-out rows, the first", "put the rows under one prefix")


def _put_source(draft: Draft, block: str, source: RowSource, option: str) -> None:
    if source.uri.startswith(FILL_IN):
        source.uri = _fill_in(draft, f"{block}.uri", source.uri.removeprefix(FILL_IN), source.key, f"use {option}")
    draft.set(f"{block}.uri", source.uri, source.key)
    if source.revision and source.uri.startswith("hf://"):
        draft.set(f"{block}.revision", source.revision, source.key)


def _fill_in(draft: Draft, field_path: str, value: str, key: Key, fix: str) -> str:
    value = hide_secrets(value)
    draft.fill_in(field_path, value, key, fix)
    return FILL_IN + value
