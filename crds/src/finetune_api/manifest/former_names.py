"""Former names and words of the spec, and what they are called now: a manifest may have been written for them."""

import copy
from collections.abc import Mapping
from typing import Any

from finetune_api.manifest.yaml_document import FieldPath

FORMER_FIELDS: Mapping[str, str] = {
    "resources.nodes": "numNodes",
    "scheduling.workloadPriorityClass": "workloadPriorityClassName",
    "tracking.mlflow.uri": "endpoint",
    "tracking.wandb.baseUrl": "endpoint",
    "tracking.wandb.secretRef": "credentialsSecretRef",
}
"""By the path below `spec`: the name in the same block."""
FORMER_WORDS: Mapping[str, Mapping[str, str]] = {
    "hyperparameters.packing": {"On": "Always", "Off": "Never"},
    "hyperparameters.fusedKernels": {"Off": "Never"},
}
"""By the path below `spec`: the words of an enumeration."""


def current_name(path: FieldPath) -> str:
    """Return the name that a field of the spec has now; "" if it has always had its name."""
    return FORMER_FIELDS.get(_below_spec(path), "")


def current_word(path: FieldPath, word: object) -> str:
    """Return what a word of a field of the spec is called now; "" if it is not a former one."""
    return FORMER_WORDS.get(_below_spec(path), {}).get(word, "") if isinstance(word, str) else ""


def rename_former(spec: Any) -> tuple[Any, list[FieldPath]]:
    """Return the spec with its current names, and the path of each former name that it has.

    Of a field that is given under both names, the current one counts.
    """
    renamed, found = copy.deepcopy(spec), list[FieldPath]()
    for former, name in FORMER_FIELDS.items():
        *blocks, field = former.split(".")
        block = renamed
        for part in blocks:
            block = block.get(part) if isinstance(block, dict) else None
        if isinstance(block, dict) and field in block:
            block.setdefault(name, block.pop(field))
            block.pop(field, None)
            found.append(("spec", *blocks, field))
    return renamed, found


def _below_spec(path: FieldPath) -> str:
    return ".".join(str(part) for part in path[1:])
