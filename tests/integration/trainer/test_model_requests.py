"""What is asked of a store about models that are refused, and about files that nothing may read, by its requests."""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hub import Hub
from tiny_model import make_tiny_model

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.files.base_model import check_model, is_model_file
from finetune_trainer.storage.hub.storage import HubStore
from finetune_trainer.storage.hub.uris import Access, HubConnection, Kind, Repo
from finetune_trainer.storage.protocol import Store
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import connect_s3

MODEL = "acme/tiny"
WEIGHTS = "model.safetensors"
CODE = "modeling_own.py"
Change = Callable[[Path], None]


@dataclass
class StoredModel:
    """A model in a store, and the names of the files of which a byte was asked for."""

    uri: str
    storage: Store
    names_read: Callable[[], set[str]]


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def add_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(folder.parent / "sprung")))


def add_code(folder: Path) -> None:
    (folder / CODE).write_text("raise AssertionError", encoding="utf-8")


def add_gguf(folder: Path) -> None:
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(64))


def only_pickle(folder: Path) -> None:
    add_pickle(folder)
    without_weights(folder)


def only_gguf(folder: Path) -> None:
    add_gguf(folder)
    without_weights(folder)


def needs_code(folder: Path) -> None:
    add_code(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": f"{Path(CODE).stem}.Own"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def has_traps_beside(folder: Path) -> None:
    for add in (add_pickle, add_code, add_gguf):
        add(folder)


@pytest.fixture(params=["s3", "hub"])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Change], StoredModel]]:
    """Put the changed model into a store of either kind."""
    folder = tmp_path / "models" / MODEL
    if request.param == "s3":
        request.getfixturevalue("aws_environment")
        yield lambda change: in_s3(make(folder, change), request)
        return
    with Hub(tmp_path).serving() as hub:
        yield lambda change: on_hub(make(folder, change), hub)


def make(folder: Path, change: Change) -> Path:
    change(make_tiny_model(folder))
    return folder


def in_s3(folder: Path, request: pytest.FixtureRequest) -> StoredModel:
    server, bucket = request.getfixturevalue("s3_server"), request.getfixturevalue("bucket")
    for path in folder.iterdir():
        server.client().upload_file(str(path), bucket, f"model/{path.name}")
    asked: set[str] = set()
    connection = connect_s3(server.spec())

    def note(request: Any, **_: Any) -> None:
        asked.add(unquote(urlsplit(request.url).path).rpartition("/")[2])

    connection.client.meta.events.register("before-send.s3", note)
    return StoredModel(f"s3://{bucket}/model", S3Store(connection), lambda: asked - {"", bucket})


def on_hub(folder: Path, hub: Hub) -> StoredModel:
    del folder  # the hub serves what lies there
    connection = HubConnection(hub.endpoint, accesses={Repo(Kind.MODEL, MODEL): Access("spec.model")})
    storage = HubStore(connection)

    def names_read() -> set[str]:
        return {one.path.partition("?")[0].rpartition("/")[2] for one in hub.transfers()}

    return StoredModel(storage.pin(f"hf://{MODEL}"), storage, names_read)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (only_pickle, "the weights exist only as pickle files, which can run code when loaded"),
        (only_gguf, "the weights exist only as GGUF, which is quantised for inference"),
        (needs_code, "config.json requires remote code (auto_map), which is never run"),
    ],
)
def test_a_refused_model_ends_in_66_and_nothing_of_it_is_read_but_texts(
    serve: Callable[[Change], StoredModel], tmp_path: Path, change: Change, told: str
) -> None:
    store = serve(change)
    with pytest.raises(TrainerError) as caught:
        check_model(store.uri, store.storage, tmp_path / "text")
    assert caught.value.code is ExitCode.MODEL_UNAVAILABLE
    assert caught.value.code.value == 66
    assert told in caught.value.message
    assert not [name for name in store.names_read() if not name.endswith(".json")]
    assert not list(tmp_path.rglob("sprung"))


def test_of_a_model_with_other_files_only_those_that_load_it_are_requested(
    serve: Callable[[Change], StoredModel], tmp_path: Path
) -> None:
    """The check of preflight, and then the download of the training."""
    store = serve(has_traps_beside)
    check_model(store.uri, store.storage, tmp_path / "text")
    store.storage.download_folder(store.uri, tmp_path / "copy", accept=is_model_file)
    expected = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS}
    assert store.names_read() == expected
    assert {path.name for path in (tmp_path / "copy").rglob("*")} == expected
    assert not list(tmp_path.rglob("sprung"))
