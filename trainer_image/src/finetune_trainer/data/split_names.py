"""Which files of a repository are meant when no path says it: by the split that their names tell, and it is said."""

import logging
import re
from collections import defaultdict
from typing import Protocol, TypeVar

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError

logger = logging.getLogger(__name__)

WORDS = {
    "train": frozenset({"train", "training"}),
    "validation": frozenset({"validation", "valid", "val", "dev"}),
    "test": frozenset({"test", "testing", "eval", "evaluation"}),
}
WANTED = {"train": ("train", ""), "validation": ("validation", "test", "")}
"""Which splits a source may take, the first that is there; an empty name is that of files that tell none."""
SHOWN = 5


class HasUri(Protocol):
    """Anything with an address."""

    @property
    def uri(self) -> str:
        """The address."""


T = TypeVar("T", bound=HasUri)


def detect_split(key: str) -> str:
    """The split that a path tells: its last part that tells one, with the words of each part in their order."""
    for part in reversed(key.lower().split("/")):
        words = re.split(r"[^a-z]+", part)
        for word in words:
            for split, names in WORDS.items():
                if word in names:
                    return split
    return ""


def choose_split(found: list[T], uri: str, place: str) -> list[T]:
    """The files that a source of training or of held-out rows may take; what is left out is said."""
    by_split: defaultdict[str, list[T]] = defaultdict(list)
    names = {one.uri: _below(one.uri, uri) for one in found}
    for one in found:
        by_split[detect_split(names[one.uri])].append(one)
    chosen = next((by_split[split] for split in WANTED[place] if split in by_split), [])
    folders = list(dict.fromkeys(names[one.uri].rpartition("/")[0] or "." for one in chosen))
    if len(folders) > 1:
        logger.warning("%s: files of %d folders are read together: %s. Name one in the uri to read it alone.",
                       uri, len(folders), _few(folders))  # fmt: skip
    left_out = [names[one.uri] for one in found if one not in chosen]
    if not left_out:
        return chosen
    if not chosen:
        message = f"its files look like another split than {place} ({_few(left_out)})"
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{uri}: {message}: name the ones to read in the uri")
    taken = [names[one.uri] for one in chosen]
    logger.warning("%s: read are %s; left out are %s. Name files in the uri to choose others.", uri, _few(taken),
                   _few(left_out))  # fmt: skip
    return chosen


def _below(uri: str, asked: str) -> str:
    """The path below the asked folder, whose own name does not count: the user chose it."""
    depth = len(asked.rstrip("/").split("/"))
    return "/".join(uri.split("/")[depth:]) or uri.rpartition("/")[2]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
