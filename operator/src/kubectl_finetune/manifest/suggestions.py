"""Suggest the field, value or flag that a user may have meant."""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

OTHER_NAMES = {
    "r": "rank",
    "loraalpha": "alpha",
    "loradropout": "dropout",
    "epochs": "numTrainEpochs",
    "numepochs": "numTrainEpochs",
    "lr": "learningRate",
    "batchsize": "perDeviceTrainBatchSize",
    "maxseqlength": "maxLength",
    "warmupratio": "warmupSteps",
    "gpus": "gpusPerNode",
    "testsize": "validationSplitPercent",
    "queue": "queueName",
}
"""Names for the same field in libraries, in lowercase."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word in another case, under another name, or similarly spelt; None if none is similar."""
    by_plain = {_plain(one): one for one in known}
    plain = _plain(word)
    other = _plain(OTHER_NAMES.get(plain, ""))
    for candidate in (plain, other):
        if candidate in by_plain:
            return by_plain[candidate]
    near = difflib.get_close_matches(plain, by_plain, n=1, cutoff=0.6)
    return by_plain[near[0]] if near else None


def elsewhere(word: str, schema: dict[str, Any], root: str) -> str | None:
    """Return the path of the field with exactly that name, if the schema has only one."""
    meant = {_plain(word), _plain(OTHER_NAMES.get(_plain(word), word))}
    places = [path for path in _paths(schema, root) if _plain(path.rpartition(".")[2]) in meant]
    return places[0] if len(places) == 1 else None


def _paths(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _paths(child, f"{path}.{name}")


def _plain(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())
