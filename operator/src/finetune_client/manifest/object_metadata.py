"""Check the metadata of a manifest, as the API server would."""

from collections.abc import Iterator
from typing import Any

from finetune_client.manifest.schema import UNKNOWN, Fault
from finetune_client.manifest.suggestions import nearest
from finetune_client.metadata import (
    KEY_FIX,
    LABEL_FIX,
    NAME_FIX,
    NAMESPACE_FIX,
    is_key,
    is_label_value,
    is_name,
    is_name_prefix,
    is_namespace,
)

META = (
    *("name", "namespace", "labels", "annotations", "generateName", "finalizers", "ownerReferences", "uid"),
    *("resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink", "deletionTimestamp"),
)


def find_metadata_faults(meta: Any) -> Iterator[Fault]:
    """Yield what the API server would refuse in the metadata of an object, and fields that it does not have."""
    if not isinstance(meta, dict):
        yield Fault(("metadata",), "is missing", "metadata: {name: my-job}")
        return
    yield from _own_names(meta)
    for key in meta:
        if key not in META:
            near = nearest(key, META)
            yield Fault(("metadata", key), UNKNOWN, f"did you mean {near}?" if near else "remove it")
    for block in ("labels", "annotations"):
        yield from _pairs(block, meta.get(block) or {})
    yield from _lists(meta)


def _pairs(block: str, values: Any) -> Iterator[Fault]:
    if not isinstance(values, dict):
        yield Fault(("metadata", block), "must be a block of fields", f"write `name: value` pairs below {block}")
        return
    for key, one in values.items():
        # The API server reads the keys of annotations without regard to case.
        if not is_key(key if block == "labels" else key.lower()):
            yield Fault(("metadata", block, key), f"is not a valid key of {block}", KEY_FIX)
        elif not isinstance(one, str):
            yield Fault(("metadata", block, key), "must be a text", "put it in quotes")
        elif block == "labels" and not is_label_value(one):
            yield Fault(("metadata", block, key), "is not a valid value of a label", LABEL_FIX)


def _own_names(meta: dict[str, Any]) -> Iterator[Fault]:
    name = meta.get("name")
    if name is None and not meta.get("generateName"):
        yield Fault(("metadata", "name"), "is missing", "give the job a name, for example support-bot")
    elif name is not None and not is_name(name):
        yield Fault(("metadata", "name"), "is not a valid Kubernetes name", NAME_FIX)
    if meta.get("generateName") and not is_name_prefix(meta["generateName"]):
        yield Fault(("metadata", "generateName"), "is not the beginning of a valid Kubernetes name", NAME_FIX)
    if meta.get("namespace") not in (None, "") and not is_namespace(meta["namespace"]):
        yield Fault(("metadata", "namespace"), "cannot be the name of a namespace", NAMESPACE_FIX)


def _lists(meta: dict[str, Any]) -> Iterator[Fault]:
    for block, kind in (("finalizers", str), ("ownerReferences", dict), ("managedFields", dict)):
        values = meta.get(block)
        if values is None:
            continue
        if not isinstance(values, list):
            yield Fault(("metadata", block), "must be a list", "remove it, or write `- ` before each item")
            continue
        for index, one in enumerate(values):
            if not isinstance(one, kind):
                what = "a text" if kind is str else "a block of fields"
                yield Fault(("metadata", block, index), f"must be {what}", "remove it")
            elif kind is str and not is_key(one):
                yield Fault(("metadata", block, index), "is not a valid name of a finalizer", KEY_FIX)
