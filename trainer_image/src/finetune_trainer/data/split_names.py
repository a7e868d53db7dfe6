"""Choose files of a repository by the split in their names, and log the choice."""

import logging
import re
from collections import defaultdict

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError, name_some

logger = logging.getLogger(__name__)

WORDS = {
    "train": frozenset({"train", "training"}),
    "validation": frozenset({"validation", "valid", "val", "dev"}),
    "test": frozenset({"test", "testing", "eval", "evaluation"}),
}
WANTED = {"train": ("train", ""), "validation": ("validation", "test", "")}
"""The splits that a source takes, in order of preference; the empty name is for files without a split in their name."""


def detect_split(key: str) -> str:
    """Return the split in a path: the first split word of the last part that contains one; empty if none does."""
    for part in reversed(key.lower().split("/")):
        words = re.split(r"[^a-z]+", part)
        for word in words:
            for split, names in WORDS.items():
                if word in names:
                    return split
    return ""


def choose_split(found: list[str], uri: str, place: str) -> list[str]:
    """Return the URIs to use for this part of the dataset, and log which files are left out."""
    by_split: defaultdict[str, list[str]] = defaultdict(list)
    names = {one: _below(one, uri) for one in found}
    for one in found:
        by_split[detect_split(names[one])].append(one)
    chosen = next((by_split[split] for split in WANTED[place] if split in by_split), [])
    folders = list(dict.fromkeys(names[one].rpartition("/")[0] or "." for one in chosen))
    if len(folders) > 1:
        logger.warning("%s: reading files of %d folders together: %s. To read only one, name it in the uri.",
                       uri, len(folders), name_some(folders))  # fmt: skip
    left_out = [names[one] for one in found if one not in chosen]
    if not left_out:
        return chosen
    if not chosen:
        message = f"its files seem to belong to a different split than {place} ({name_some(left_out)})"
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"{uri}: {message}: name the files to read in the uri")
    taken = [names[one] for one in chosen]
    logger.warning("%s: reading %s; leaving out %s. To choose other files, name them in the uri.",
                   uri, name_some(taken), name_some(left_out))  # fmt: skip
    return chosen


def _below(uri: str, asked: str) -> str:
    """Return the path below the requested folder, whose own name is ignored because the user chose it."""
    depth = len(asked.rstrip("/").split("/"))
    return "/".join(uri.split("/")[depth:]) or uri.rpartition("/")[2]
