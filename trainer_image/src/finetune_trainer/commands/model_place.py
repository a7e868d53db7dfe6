"""A model that a command names: a local folder, or a URI of S3 or a hub."""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from finetune_api.inputs.claims import is_claim_uri
from finetune_api.spec import FineTuneJobSpec, Method, Objective
from finetune_trainer.commands.local_stores import connect_here
from finetune_trainer.config.manifest import parse_spec
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.files.base_model import ADAPTER_CONFIG, ModelFacts, check_model, is_model_file, refuse
from finetune_trainer.models.files.cache import cached_model
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import ReadableStore

SCHEMES = ("s3://", "hf://")
UNUSED = "s3://unused"
"""In place of the URIs that a job needs and a command does not read."""


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """The store of a model, and its folder if it is on this machine."""

    uri: str
    storage: ReadableStore
    folder: Path | None = None

    def check(self, scratch: Path, named: str) -> ModelFacts:
        """Check the model as preflight does, and leave its text files in `scratch`; `named` replaces the field."""
        try:
            return check_model(self.uri, self.storage, scratch)
        except TrainerError as error:
            raise TrainerError(error.code, error.message.replace("spec.model.uri", named)) from None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model is from: the job that names its endpoints, its revision, and the servers of `--send-keys-to`."""

    spec: FineTuneJobSpec | None = None
    revision: str | None = None
    send_keys_to: Collection[str] = ()


def find_model(name: str, option: str, stop: StopFlag, origin: Origin | None = None) -> ModelPlace:
    """Return the place of a model; a URI of a hub is pinned to its commit."""
    origin = origin or Origin()
    folder = Path(name)
    if folder.is_dir():
        return ModelPlace(name, LocalStore({name: folder}), folder)
    if is_claim_uri(name):
        problem = f"{name} is in a PersistentVolumeClaim, which only pods mount"
        raise InvalidConfig(f"{problem}: copy its folder here, and name that with {option}")
    if not name.startswith(SCHEMES):
        raise InvalidConfig(f"{option} {name}: there is no such folder; write a folder, s3://… or hf://…")
    spec = origin.spec or minimal_spec(name, option)
    storage = connect_here(spec, stop, LocalStore({}), origin.send_keys_to)
    return ModelPlace(storage.pin(name.rstrip("/"), origin.revision), storage)


def minimal_spec(
    uri: str,
    option: str,
    *,
    objective: Objective = Objective.CHAT,
    method: Method = Method.AUTO,
    max_length: int = 2048,
    gpus: int = 1,
) -> FineTuneJobSpec:
    """Return the shortest spec with this model; a URI that no job could have is refused."""
    content: dict[str, Any] = {
        "objective": objective.value,
        "model": {"uri": uri if uri.startswith(SCHEMES) else f"{UNUSED}/model"},
        "dataset": {"train": {"uri": f"{UNUSED}/rows.jsonl"}},
        "output": {"uri": f"{UNUSED}/result"},
        "tuning": {"method": method.value},
        "hyperparameters": {"maxLength": max_length},
        "resources": {"gpusPerNode": gpus},
    }
    if objective is Objective.RLHF:
        content["rlhf"] = {"rewards": [{"type": "Length", "targetTokens": 100}]}
    if objective is Objective.DISTILLATION:
        content["distillation"] = {"teacher": {"uri": f"{UNUSED}/teacher"}}
    return parse_spec(content, Path(option))


@dataclass(frozen=True, slots=True)
class OpenedBase:
    """A base model on this machine, and the facts of its check."""

    folder: Path
    facts: ModelFacts


def open_base(name: str, option: str, stop: StopFlag, scratch: Path, origin: Origin | None = None) -> OpenedBase:
    """Check a base as preflight does; one that is not on this machine is downloaded into the cache of this user."""
    place = find_model(name, option, stop, origin)
    facts = place.check(scratch / "checked", option)
    if place.folder is None:
        return OpenedBase(_fetch_base(place, scratch / "base", stop), facts)
    if (place.folder / ADAPTER_CONFIG).exists():  # the library would apply it unasked
        refuse(name, f"it has an {ADAPTER_CONFIG} next to the weights: name a folder with the base alone")
    return OpenedBase(place.folder, facts)


def _fetch_base(place: ModelPlace, directory: Path, stop: StopFlag) -> Path:
    """Return the model's folder in the cache of this user, else downloaded."""
    entries = [entry for entry in place.storage.list(place.uri) if is_model_file(entry.key)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-trainer"
    with progress_bar("fetching the base", stop, total=sum(entry.size for entry in entries), unit="B") as on_bytes:
        found = cached_model(place.uri, entries, place.storage, cache, on_bytes)
        if found is None:
            place.storage.download_folder(place.uri, directory, on_bytes, accept=is_model_file)
    return found or directory


@contextmanager
def progress_bar(
    title: str, stop: StopFlag, *, total: int | None = None, unit: str = "it"
) -> Iterator[Callable[..., None]]:
    """Show a bar on a terminal, and yield the callback for a piece of work, which SIGTERM ends."""
    with tqdm(total=total, unit=unit, unit_scale=unit == "B", leave=False, disable=None, desc=title) as bar:

        def on_work(done: int = 1) -> None:
            stop.raise_if_set()
            bar.update(done)

        yield on_work
