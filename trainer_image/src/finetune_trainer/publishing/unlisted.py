"""Files in a result's folders that are not part of it, for example a full model that an earlier attempt uploaded."""

import logging
from collections.abc import Sequence

from finetune_api.handoff import Artifact, JobConfig, ManifestFile
from finetune_api.text.printable import printable
from finetune_trainer.errors import TrainerError, name_some
from finetune_trainer.storage.protocol import ReadableStore, Store, join_uri

logger = logging.getLogger(__name__)

FOLDERS = tuple(f"{name}/" for name in (Artifact.ADAPTER, Artifact.MERGED, Artifact.GGUF, Artifact.KEPT))


def find_unlisted(uri: str, files: Sequence[ManifestFile], storage: ReadableStore) -> list[str]:
    """Return the paths of the models under a prefix that are not among its files.

    Keys below another claim, of a job whose `output.uri` is in such a folder, belong to that job.
    """
    keys, listed = [entry.key for entry in storage.list(uri)], {file.path for file in files}
    claimed = tuple(key.removesuffix(Artifact.OWNER) for key in keys if key.endswith(f"/{Artifact.OWNER}"))
    return [
        key
        for key in keys
        if (key.startswith(FOLDERS) or key == Artifact.WITHHELD) and not key.startswith(claimed) and key not in listed
    ]


def remove_unlisted(config: JobConfig, paths: Sequence[str], storage: Store) -> list[str]:
    """Remove these files of the job's prefix; return those that remain because storage refuses."""
    for number, path in enumerate(paths):
        try:
            storage.remove(join_uri(config.output_key(), path))
        except TrainerError as error:
            logger.warning("%s: %s", describe_unlisted(config.output_key(), paths[number:]), error.message)
            return list(paths[number:])
    return []


def describe_unlisted(uri: str, paths: Sequence[str]) -> str:
    """Return the fault of a result with such files, and the fix."""
    names = name_some([printable(path) for path in paths])
    return f"in the folders of the result, but not part of it: {names}; delete them from {uri}"
