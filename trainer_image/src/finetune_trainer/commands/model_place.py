"""A model that a command names: a local folder, or a URI of S3 or a hub."""

from dataclasses import dataclass
from pathlib import Path

from finetune_api.handoff import ExitCode
from finetune_api.spec import FineTuneJobSpec, Method
from finetune_trainer.commands.local_stores import connect_here
from finetune_trainer.config.manifest import parse_spec
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.base_model import ModelFacts, check_model
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


def find_model(
    name: str, option: str, stop: StopFlag, *, revision: str | None = None, spec: FineTuneJobSpec | None = None
) -> ModelPlace:
    """Return the place of a model; a URI of a hub is pinned to its commit. `spec` names endpoints, if it is given."""
    folder = Path(name)
    if folder.is_dir():
        return ModelPlace(name, LocalStore({name: folder}), folder)
    if not name.startswith(SCHEMES):
        raise TrainerError(
            ExitCode.INVALID_CONFIG, f"{option} {name}: there is no such folder; write a folder, s3://… or hf://…"
        )
    storage = connect_here(spec or minimal_spec(name, option), stop, LocalStore({}))
    return ModelPlace(storage.pin(name.rstrip("/"), revision), storage)


def minimal_spec(
    uri: str, option: str, *, method: Method = Method.AUTO, max_length: int = 2048, gpus: int = 1
) -> FineTuneJobSpec:
    """Return the shortest spec with this model; a URI that no job could have is refused."""
    content = {
        "objective": "Chat",
        "model": {"uri": uri if uri.startswith(SCHEMES) else f"{UNUSED}/model"},
        "dataset": {"train": {"uri": f"{UNUSED}/rows.jsonl"}},
        "output": {"uri": f"{UNUSED}/result"},
        "tuning": {"method": method.value},
        "hyperparameters": {"maxLength": max_length},
        "resources": {"gpusPerNode": gpus},
    }
    return parse_spec(content, Path(option))
