"""Choose the files of a subset and a split of a dataset on a hub, by its card as `datasets` reads it."""

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.handoff import ExitCode
from finetune_api.inputs.sources import DataFiles
from finetune_trainer.data.patterns import card_pattern_to_regex
from finetune_trainer.data.split_names import detect_split
from finetune_trainer.errors import TrainerError, name_some
from finetune_trainer.storage.hub.cards import parse_front_matter

CONFIGS_LIMIT = 128 * 1024
"""Characters of a card's list of subsets."""
MOST_SUBSETS = 2000
MOST_STARS = 8
"""Stars in a pattern of a card, each of which multiplies the time of the comparison; one with more matches nothing."""
DEFAULT = "default"
SPLITS = {"train": ("train",), "validation": ("validation", "test")}
"""The splits that a part of the dataset takes if the job names none, in order of preference."""


@dataclass(frozen=True, slots=True)
class Subset:
    """One configuration of a dataset: patterns of its files, by split if the card has splits; else under ""."""

    name: str
    patterns: Mapping[str, Sequence[str]]
    is_default: bool = False

    def find_files(self, keys: Sequence[str], split: str = "") -> tuple[list[str], list[str]]:
        """Return the files of a split of the subset, and its patterns that match none."""
        found: set[str] = set()
        unmatched = []
        for pattern in self.patterns[split]:
            matches = re.compile(card_pattern_to_regex(pattern)).fullmatch
            matched = [key for key in keys if matches(key)] if pattern.count("*") <= MOST_STARS else []
            found.update(matched)
            unmatched += [] if matched else [pattern]
        return [key for key in keys if key in found], unmatched


def list_subsets(card: str | None) -> list[Subset]:
    """Return the subsets that a dataset's card lists under `configs`."""
    found = parse_front_matter(card or "", "configs", CONFIGS_LIMIT).get("configs")
    entries = found[:MOST_SUBSETS] if isinstance(found, list) else []
    return [
        Subset(one["config_name"], patterns, one.get("default") is True or one["config_name"] == DEFAULT)
        for one in entries
        if isinstance(one, dict) and isinstance(one.get("config_name"), str) and (patterns := _patterns(one))
    ]


def _patterns(entry: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the patterns of a subset's files by split; empty if its entry has another form."""
    data_dir = entry.get("data_dir")
    folder = posixpath.normpath(data_dir).strip("/") + "/" if isinstance(data_dir, str) else ""
    folder = "" if folder in ("/", "./") else folder
    files = entry.get("data_files", None if data_dir is None else "**")
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    found: dict[str, list[str]] = {}
    for one in files if isinstance(files, list) else [files]:
        is_split = isinstance(one, dict) and isinstance(one.get("split"), str)
        for path in _texts(one.get("path") if is_split else one):
            found.setdefault(one["split"] if is_split else "", []).append(folder + path.removeprefix("./"))
    return found


def _texts(value: object) -> Iterator[str]:
    yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def choose_subset(keys: Sequence[str], card: str | None, source: DataFiles, place: str) -> list[str] | None:
    """Return the files of the subset and split that the source names, or that the card marks as the default.

    None if neither names any: the files are then chosen by the splits in their names. Raises DatasetUnusable for a
    subset or a split that is not there, for a pattern without a file, and for several subsets of which none is named.
    """
    field = f"spec.dataset.{place}"
    subset = _named_subset(keys, list_subsets(card), source, place)
    if subset is None:
        return None if source.split is None else _of_split_name(keys, source, field)
    split = "" if "" in subset.patterns else _split_of(subset, source, place, field)
    chosen, unmatched = subset.find_files(keys, split)
    if unmatched:
        files = f"no data file that matches {name_some(unmatched)}"
        raise _unusable(source, f"subset {subset.name} has {files}: name its files in {field}.uri")
    if not split:
        if source.split is not None:
            return _of_split_name(chosen, source, field)
        wanted = SPLITS[place.partition(".")[0]]
        by_split = {one: [key for key in chosen if detect_split(key) == one] for one in (*wanted, "")}
        chosen = next((found for found in by_split.values() if found), [])
    if not chosen:
        raise _unusable(source, f"subset {subset.name} has no data file: name its files in {field}.uri")
    return chosen


def _named_subset(keys: Sequence[str], subsets: list[Subset], source: DataFiles, place: str) -> Subset | None:
    if source.config is None:
        return _default_subset(subsets, source, place)
    named = next((one for one in subsets if one.name == source.config), None)
    if named or any(key.startswith(f"{source.config}/") for key in keys):
        return named or Subset(source.config, {"": [f"{source.config}/**"]})
    folders = dict.fromkeys(key.partition("/")[0] for key in keys if "/" in key)
    names = name_some([one.name for one in subsets] or list(folders)) or "none"
    raise _unusable(source, f"has no subset {source.config}: it has {names}: correct spec.dataset.{place}.config")


def _default_subset(subsets: list[Subset], source: DataFiles, place: str) -> Subset | None:
    """Return the default of several subsets; the only one, if the source or its own splits show that it is meant."""
    if len(subsets) > 1:
        if default := next((one for one in subsets if one.is_default), None):
            return default
        names = name_some([one.name for one in subsets])
        field = f"spec.dataset.{place}.config"
        raise _unusable(source, f"has {len(subsets)} subsets ({names}): set {field} to one of them")
    splits = SPLITS[place.partition(".")[0]]
    return next((one for one in subsets if source.split or not one.patterns.keys().isdisjoint(splits)), None)


def _split_of(subset: Subset, source: DataFiles, place: str, field: str) -> str:
    wanted = (source.split,) if source.split else SPLITS[place.partition(".")[0]]
    found = next((split for split in wanted if split in subset.patterns), None)
    if found is None:
        names = name_some(list(subset.patterns))
        raise _unusable(source, f"subset {subset.name} has no split {wanted[0]}: it has {names}: set {field}.split")
    return found


def _of_split_name(keys: Sequence[str], source: DataFiles, field: str) -> list[str]:
    """Return the files with the split's name as a part of their path, as in `data/train_sft-00000.parquet`."""
    part = re.compile(rf"(^|[/.-]){re.escape(source.split or '')}([/.-]|$)")
    if chosen := [key for key in keys if part.search(key)]:
        return chosen
    raise _unusable(
        source, f"no file has split {source.split} in its path ({name_some(list(keys))}): correct {field}.split"
    )


def _unusable(source: DataFiles, why: str) -> TrainerError:
    return TrainerError(ExitCode.DATASET_UNUSABLE, f"{source.uri} {why}")
