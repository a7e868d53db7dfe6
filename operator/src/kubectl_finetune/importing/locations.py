"""URIs of models, rows and results: hub repositories and buckets are carried, local paths become placeholders."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetune_api.blocks import DATA_URI, MODEL_URI
from finetune_api.manifest.yaml_document import FieldPath
from finetune_client.manifest.fixes import FILL_IN
from kubectl_finetune.importing import shared, values
from kubectl_finetune.importing.draft import Draft, Key, NotConverted
from kubectl_finetune.importing.files import hide_secrets

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
DATA_FILE = re.compile(r"[.](jsonl?|ndjson|csv|tsv|parquet|arrow|txt|gz|zst)$")
SPLIT = re.compile(r"(?P<name>\w+)(?:\[:(?P<rows>\d+)(?P<percent>%?)\])?")
LOCAL_FOLDERS = frozenset(
    (
        *("saves", "output", "outputs", "out", "models", "model", "checkpoints", "ckpt", "runs", "results"),
        *("data", "dataset", "datasets", "exp", "experiments", "local", "tmp", "mnt", "home", "workspace"),
    )
)
"""Usual names of folders on the disk: `saves/sft` has the form of a repository's name, but is not on the hub."""
TRAIN = "train"
"""The split of training rows, unless another one is given."""
WHOLE_DATASET = re.compile(r"hf://datasets/[^/]+/[^/]+/?")


@dataclass
class RowSource:
    """One source of training rows."""

    key: Key
    uri: str
    revision: str = ""
    config: str = ""
    split: str = ""
    max_samples: int | None = None
    weight: float | None = None
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
    value = str(draft.get(key) or "")
    uri = draft.options.result or (value if value.startswith("s3://") else "")
    uri = uri or _fill_in(draft, "output.uri", value or "result", key, "use --result")
    draft.set("output.uri", uri, "--result" if draft.options.result else key)


def is_local(value: str) -> bool:
    """Return whether other projects would read the value from the disk."""
    first, slash, _ = value.partition("/")
    return (
        value.startswith(("/", "./", "../", "~"))
        or (bool(slash) and first.lower() in LOCAL_FOLDERS)
        or bool(DATA_FILE.search(value))
        or os.path.exists(value)
    )


def hub_id(value: str) -> bool:
    """Return whether the value is the name of a repository on the hub."""
    return bool(REPOSITORY.fullmatch(value)) and not is_local(value)


def _model_uri(value: str) -> str:
    if MODEL_URI.fullmatch(value):
        return value
    return f"hf://{value}" if hub_id(value) else ""


def row_source(
    draft: Draft, key: Key, name: str, *, files: object = None, split: str, config: str = "", on_hub: bool = True
) -> RowSource:
    """Return where the rows are: a repository or a bucket, else the local path with the mark of a placeholder."""
    paths = [files] if isinstance(files, str) else [str(one) for one in files] if isinstance(files, list) else []
    if DATA_URI.fullmatch(name) or (on_hub and hub_id(name)):
        uri = name if DATA_URI.fullmatch(name) else f"hf://datasets/{name}"
        source = RowSource(key, f"{uri.rstrip('/')}/{paths[0].removeprefix('./')}" if paths else uri)
    else:
        source = RowSource(key, FILL_IN + (paths[0] if paths and not is_local(name) else name))
    if len(paths) > 1:
        draft.lose(key, "only the first of its files is read", "name all with a pattern in the URI")
    is_whole = bool(WHOLE_DATASET.fullmatch(source.uri))
    if is_whole:
        source.config = config
    elif config:
        draft.lose(key, f"the configuration {config} is of no use for single files", "name its files in the URI")
    _choose_split(draft, source, split, is_whole=is_whole)
    return source


def listed_entries(draft: Draft, key: str) -> list[tuple[FieldPath, dict[str, Any]]]:
    """Return the entries of a list of datasets, and name those that are not blocks."""
    found = draft.get(key)
    if found is not None and not isinstance(found, list):
        draft.lose(key, "is not a list of datasets", "write a list of blocks with path")
        return []
    entries = list(enumerate(found or []))
    for index, one in entries:
        if not isinstance(one, dict):
            draft.lose((key, index), "is not a block", "write a block with path")
    return [((key, index), one) for index, one in entries if isinstance(one, dict)]


def listed_source(draft: Draft, key: Key, entry: Mapping[str, Any]) -> RowSource:
    """Return where the rows of an entry of a list of datasets are, whose keys axolotl and TRL have in common."""
    return row_source(
        draft,
        key,
        str(entry.get("path") or ""),
        files=entry.get("data_files"),
        split=str(entry.get("split") or ""),
        config=str(entry.get("name") or ""),
    )


def _choose_split(draft: Draft, source: RowSource, split: str, *, is_whole: bool) -> None:
    found = SPLIT.fullmatch(split.replace(" ", ""))
    if not found:
        if split:
            draft.lose(source.key, f"the split {split} is not chosen", "name its files in the URI")
        return
    if is_whole:
        source.split = found["name"]
    elif found["name"] != TRAIN:
        draft.lose(source.key, f"the split {found['name']} is of no use for single files", "name its files in the URI")
    if found["percent"]:
        reason = f"a percentage of the rows cannot be chosen: all are used, not {found['rows']} %"
        draft.lose(source.key, reason, "set maxSamples")
    elif found["rows"]:
        source.max_samples = int(found["rows"])


def put_train(draft: Draft, sources: list[RowSource]) -> None:
    """Set the rows to train on."""
    if draft.options.data:
        sources = [_given_rows(draft, sources)]
    if not sources:
        sources = [RowSource("data", f"{FILL_IN}rows")]
    sources = _without_repeats(draft, sources)
    if len(sources) > 1:
        blend = []
        for index, source in enumerate(sources):
            path = f"dataset.train.sources[{index}]"
            own = {
                "weight": source.weight,
                "maxSamples": source.max_samples,
                "format": source.format,
                "columns": source.columns,
            }
            blend.append(source_fields(draft, path, source, "--data") | {name: one for name, one in own.items() if one})
            draft.origins[path] = draft.name(source.key)
        draft.set("dataset.train.sources", blend, sources[0].key)
        return
    (only,) = sources
    draft.set("dataset.train", source_fields(draft, "dataset.train", only, "--data"), only.key)
    for name, value in (("format", only.format), ("columns", only.columns), ("maxSamples", only.max_samples)):
        if value:
            draft.set(f"dataset.{name}", value, only.key)


def put_shares(draft: Draft, key: str, sources: list[RowSource], shares: Sequence[Any]) -> bool:
    """Set the weight of each source; return whether each has one."""
    try:
        weights = [values.number(one) for one in shares]
    except NotConverted:
        weights = []
    if len(weights) != len(sources) or min(weights) <= 0:
        fix = "set weight in each of dataset.train.sources"
        draft.lose(key, "all rows of all sources are used: not each has a share above 0", fix)
        return False
    for source, weight in zip(sources, weights, strict=True):
        source.weight = weight
    if draft.at("objective") in shared.SUPERVISED:
        reason = "the shares are of the trained tokens, not of the rows"
        draft.lose(key, reason, "change weight in dataset.train.sources if the lengths of their rows differ much")
    return True


def _given_rows(draft: Draft, sources: list[RowSource]) -> RowSource:
    """Return the rows of the option, with what the file states of its first dataset."""
    first, *others = sources or [RowSource("--data", "")]
    for other in others:
        if _description(other) != _description(first):
            reason = "the rows of --data are read with format, columns and limit of the first dataset, and this one "
            draft.lose(other.key, f"{reason}has others", "set dataset.format and dataset.columns for your rows")
            break
    return replace(first, key="--data", uri=draft.options.data, revision="", config="", split="")


def _without_repeats(draft: Draft, sources: list[RowSource]) -> list[RowSource]:
    """Return the sources without those that are listed again; their rows would be removed as duplicates."""
    found: dict[tuple[str, str, str], RowSource] = {}
    for source in sources:
        first = found.setdefault((source.uri, source.config, source.split or TRAIN), source)
        if first is source:
            continue
        if first.weight is not None and source.weight is not None:
            first.weight += source.weight
        if _description(first) == _description(source):
            draft.lose(source.key, "the same rows are listed before: repeated rows are removed", changes_training=False)
        else:
            reason = "the same rows are listed before, with another format, other columns or another limit, which count"
            draft.lose(source.key, reason, "list them once")
    return list(found.values())


def _description(source: RowSource) -> tuple[str, dict[str, str], int | None]:
    return source.format, source.columns, source.max_samples


def source_fields(draft: Draft, path: str, source: RowSource, option: str) -> dict[str, Any]:
    """Return the fields of a source; the split `train` is the default of training rows, and of no others."""
    uri = source.uri
    if uri.startswith(FILL_IN):
        uri = _fill_in(draft, f"{path}.uri", uri.removeprefix(FILL_IN), source.key, f"use {option}")
    revision = source.revision if uri.startswith("hf://") else ""
    split = "" if source.split == TRAIN and option == "--data" else source.split
    found = {"uri": uri, "revision": revision, "config": source.config, "split": split}
    return {name: one for name, one in found.items() if one}


def _fill_in(draft: Draft, field_path: str, value: str, key: Key, fix: str) -> str:
    value = hide_secrets(value)
    draft.fill_in(field_path, value, key, fix)
    return FILL_IN + value
