"""The datasets of a LLaMA-Factory file, which are described in dataset_info.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.manifest.yaml_document import FileError, read_documents, read_text
from finetune_api.manifest.yaml_faults import YamlError
from finetune_api.objectives import Objective
from finetune_client.manifest.fixes import FILL_IN
from finetune_client.manifest.suggestions import nearest
from kubectl_finetune.importing import shared, values
from kubectl_finetune.importing.draft import Draft, NotConverted
from kubectl_finetune.importing.held_out import put_validation
from kubectl_finetune.importing.locations import TRAIN, RowSource, put_shares, put_train, row_source
from kubectl_finetune.importing.roles import check_roles, turn_columns

COLUMNS: Mapping[str, tuple[str, str]] = {
    "prompt": ("instruction", "instruction"),
    "query": ("input", "input"),
    "response": ("output", "output"),
    "history": ("history", "history"),
    "messages": ("messages", "conversations"),
    "system": ("system", "system"),
    "tools": ("tools", "tools"),
    "chosen": ("chosen", "chosen"),
    "rejected": ("rejected", "rejected"),
    "kto_tag": ("label", "kto_tag"),
}
"""Columns of dataset_info.json: our name, and another one that is found without a mapping."""
TAGS: Mapping[str, str] = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "assistant",
    "system_tag": "system",
}
DESCRIBED = (
    *("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags"),
    *("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "cloud_file_name", "script_url"),
)
"""Keys of an entry of dataset_info.json."""
ENDS: Mapping[str, str] = {"interleave_under": "FirstExhausted", "interleave_over": "AllExhausted"}
INFO = "dataset_info.json"


def put_rows(draft: Draft) -> None:
    """Set the rows to train on and to evaluate with."""
    info = _read_info(draft)
    sources = _sources(draft, "dataset", info)
    ends = _mixture(draft, sources)
    put_train(draft, sources)
    if ends and draft.at("dataset.train.sources"):
        draft.set("dataset.train.stoppingStrategy", ends, "mix_strategy")
    put_validation(draft, _sources(draft, "eval_dataset", info))
    shared.put_share(draft, "val_size")


def _mixture(draft: Draft, sources: list[RowSource]) -> str | None:
    """Set the share of each source; return when the mixture ends, None if all rows of all sources are used."""
    kind = str(draft.get("mix_strategy") or "concat")
    if kind == "concat" or len(sources) < 2:
        keys = "interleave_probs" if kind == "concat" else "mix_strategy interleave_probs"
        shared.name_unused(draft, keys, "shares are of several datasets, with mix_strategy interleave_under or _over")
        return None
    if kind not in ENDS:
        fix = "set weight in each of dataset.train.sources, and dataset.train.stoppingStrategy"
        draft.lose("mix_strategy", "all rows of all sources are used", fix)
        return None
    probabilities = values.words(draft.get("interleave_probs") or ["1"] * len(sources))
    key = "interleave_probs" if draft.is_given("interleave_probs") else "mix_strategy"
    return ENDS[kind] if put_shares(draft, key, sources, probabilities) else None


def _sources(draft: Draft, key: str, info: dict[str, Any] | None) -> list[RowSource]:
    found = [one for name in values.words(draft.get(key) or []) if (one := _source(draft, key, name, info))]
    if limit := shared.read(draft, "max_samples", values.count):
        for one in found:
            one.max_samples = min(limit, one.max_samples or limit)
    return found


def _read_info(draft: Draft) -> dict[str, Any] | None:
    """Return the descriptions of datasets next to the file, or in `dataset_dir`; None if there are none."""
    folder, here = str(draft.get("dataset_dir")), Path(draft.file.name).parent
    if folder == "ONLINE":
        return None
    for path in (here / INFO, here / folder / INFO, Path(folder) / INFO):
        if path.is_file():
            try:
                documents = read_documents(read_text(path))
            except (FileError, YamlError) as error:
                draft.lose("dataset_dir", f"{path} cannot be read: {error}", "correct it")
                return None
            found = documents[0].value if documents else None
            return found if isinstance(found, dict) else None
    return {}


def _source(draft: Draft, key: str, name: str, info: dict[str, Any] | None) -> RowSource | None:
    if info is None:
        return row_source(draft, key, name, split=TRAIN)
    entry = info.get(name)
    if not isinstance(entry, dict):
        if info:
            near = nearest(name, info)
            fix = f"did you mean {near}? Else copy" if near else "copy"
            draft.lose(key, f"{INFO} has no {name}", f"{fix} its entry there, or use --data and set dataset.columns")
        else:
            reason = f"{name} is described in {INFO}, which is not next to the file"
            draft.lose(key, reason, "copy it there, or use --data and set dataset.columns")
        return RowSource(key, FILL_IN + name)
    if "script_url" in entry:
        draft.refuse(key, f"{name} is loaded by a script, which is not run", "give its rows as files")
        return None
    place, folder = entry.get("hf_hub_url") or entry.get("cloud_file_name"), entry.get("folder")
    source = row_source(
        draft,
        key,
        str(place or entry.get("file_name") or entry.get("ms_hub_url") or entry.get("om_hub_url") or name),
        files=f"{folder}/" if folder and place else None,
        split=str(entry.get("split") or TRAIN),
        config=str(entry.get("subset") or ""),
        on_hub=place is not None,
    )
    _choose_rows(draft, source, key, name, entry.get("num_samples"))
    _read_description(draft, source, key, name, entry)
    return source


def _choose_rows(draft: Draft, source: RowSource, key: str, name: str, samples: Any) -> None:
    if samples is None:
        return
    try:
        source.max_samples = values.count(samples)
    except NotConverted as error:
        draft.lose(key, f"{name}: num_samples {error.reason}", error.fix)
        return
    fix = "shuffle the file; one of several dataset.train.sources may have sample Random"
    draft.lose(key, f"{name}: the first {samples} rows are used, not random ones", fix)


def _read_description(draft: Draft, source: RowSource, key: str, name: str, entry: dict[str, Any]) -> None:
    columns, tags = _block(entry, "columns"), _block(entry, "tags")
    for column, own in columns.items():
        if column in {"images", "videos", "audios"}:
            draft.refuse(key, f"{name}: {shared.TEXT_ONLY}", "remove it from the list of datasets")
        elif column not in COLUMNS:
            draft.lose(key, f"{name}: {INFO} has an unknown column {column}")
        elif draft.at("objective") == Objective.DOMAIN_ADAPTATION.value and column == "prompt":
            source.columns |= {"text": str(own)} if own != "text" else {}
        elif str(own) not in COLUMNS[column]:
            source.columns[COLUMNS[column][0]] = str(own)
    for unknown in (one for one in entry if one not in DESCRIBED):
        draft.lose(key, f"{name}: {INFO} has an unknown key {unknown}")
    if entry.get("formatting", "alpaca") == "alpaca":
        is_plain = draft.at("objective") == Objective.DOMAIN_ADAPTATION.value
        source.format = "Text" if is_plain else "" if entry.get("ranking") or "kto_tag" in columns else "Alpaca"
        return
    source.columns |= turn_columns(tags.get("role_tag"), tags.get("content_tag"))
    check_roles(draft, (key,), _roles(tags))


def _block(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = entry.get(name)
    return found if isinstance(found, dict) else {}


def _roles(tags: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for tag, role in TAGS.items():
        if tags.get(tag):
            found.setdefault(role, []).append(str(tags[tag]))
    return found
