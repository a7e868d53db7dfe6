"""The base model's files for training: of the commit that preflight checked, and from the cache where there is one."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.handoff import MODEL_CACHE_DIR, JobConfig
from finetune_trainer.base_model import is_model_file, pin_model
from finetune_trainer.hub import COMMIT, is_hub_uri, model_location
from finetune_trainer.model_cache import cached_model
from finetune_trainer.storage import OnBytes, Storage


def pin_as_checked(config: JobConfig, checked: Mapping[str, Any], storage: Storage) -> JobConfig:
    """The job with the model's commit: the one in preflight's summary, for a branch may have moved on since."""
    model = config.spec.model
    revision = str(checked.get("revision", ""))
    if is_hub_uri(model.uri) and checked.get("uri") == model.uri and COMMIT.fullmatch(revision):
        pinned = model.model_copy(update={"revision": revision})
        config = config.model_copy(update={"spec": config.spec.model_copy(update={"model": pinned})})
    return pin_model(config, storage)


def fetch_model(
    config: JobConfig, storage: Storage, directory: Path, on_bytes: OnBytes, cache: Path = Path(MODEL_CACHE_DIR)
) -> Path:
    """The folder with the model: in the cache, else downloaded into `directory`."""
    uri = model_location(config.spec.model)
    shutil.rmtree(directory, ignore_errors=True)
    if config.spec.model_cache and cache.is_dir():
        entries = [entry for entry in storage.list(uri) if is_model_file(entry.key)]
        found = cached_model(uri, entries, storage, cache, on_bytes)
        if found:
            return found
    storage.download_folder(uri, directory, on_bytes, accept=is_model_file)
    return directory
