"""Suggest the field, value or flag that a user may have meant."""

import difflib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from finetune_api.manifest.foreign_names import plain_name

SHORT_NAMES = {
    "epochs": "numTrainEpochs",
    "numepochs": "numTrainEpochs",
    "lr": "learningRate",
    "warmup": "warmupSteps",
    "gpus": "gpusPerNode",
    "nodes": "numNodes",
    "testsize": "validationSplitPercent",
    "queue": "queueName",
}
"""Short names of fields, in lowercase."""


def nearest(word: str, known: Iterable[str], missing: Collection[str] = ()) -> str | None:
    """Return the known word in another case, under a short name, or similarly spelt; None if none is similar.

    Among the similar ones, a word that is missing comes first.
    """
    by_plain = {plain_name(one): one for one in known}
    near = [by_plain[one] for one in difflib.get_close_matches(plain_name(word), by_plain, n=3, cutoff=0.6)]
    # by the letters that both have, `modle` is nearer to `mode` than to `model`
    return exact(word, by_plain.values()) or next((one for one in near if one in missing), next(iter(near), None))


def exact(word: str, known: Iterable[str]) -> str | None:
    """Return the known word in another case or under a short name; None if there is none."""
    by_plain = {plain_name(one): one for one in known}
    plain = plain_name(word)
    return by_plain.get(plain) or by_plain.get(plain_name(SHORT_NAMES.get(plain, "")))


def elsewhere(word: str, schema: dict[str, Any]) -> str:
    """Return the paths of the fields with exactly that name, if the schema has at most three; else ""."""
    meant = {plain_name(word), plain_name(SHORT_NAMES.get(plain_name(word), word))}
    places = [path for path in _paths(schema, "spec") if plain_name(path.rpartition(".")[2]) in meant]
    return " or ".join(places) if len(places) <= 3 else ""


def _paths(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _paths(child, f"{path}.{name}")
