"""A hub on loopback that answers as the real one does, and everything that can go wrong between."""

import io
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from tiny_model import make_tiny_model

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import ObjectMissing, Stopped, StorageUnavailable, TrainerError
from finetune_trainer.evaluation.run_record import Licence
from finetune_trainer.models.files.base_model import check_model, is_model_file
from finetune_trainer.models.files.model_card import read_licence
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.hub.storage import HubStore
from finetune_trainer.storage.hub.uris import Access, HubConnection, Kind, Repo
from finetune_trainer.storage.protocol import Entry, sha256_file
from finetune_trainer.storage.routed import RoutedStore

TINY = "hf://acme/tiny"
MODEL = Repo(Kind.MODEL, "acme/tiny")
DATA = Repo(Kind.DATASET, "acme/qa")
NO_DATA = Repo(Kind.DATASET, "acme/none")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    make_tiny_model(root / "models" / "acme" / "tiny")
    make_tiny_model(root / "models" / "acme" / "tiny@v1", seed=1)
    (root / "models" / "acme" / "tiny@v1" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    rows = root / "datasets" / "acme" / "qa" / "data"
    rows.mkdir(parents=True)
    (rows / "train.jsonl").write_text('{"instruction": "1 + 1?", "output": "2"}\n')
    (rows / "ünï code.jsonl").write_text("{}\n")
    return root


@pytest.fixture
def hub(repositories: Path) -> Iterator[Hub]:
    with Hub(repositories).serving() as running:
        yield running


def connect(hub: Hub, token: str | None = None, **more: Any) -> HubStore:
    accesses = {
        MODEL: Access("spec.model", token, more.pop("secret", None)),
        DATA: Access("spec.dataset.train", token),
        NO_DATA: Access("spec.dataset.train", token),
    }
    return HubStore(HubConnection(hub.endpoint, accesses=accesses), **more)


def test_the_hub_of_the_tests_implements_what_the_library_expects(hub: Hub, tmp_path: Path) -> None:
    code = (
        "from huggingface_hub import snapshot_download as get; "
        "a = get('acme/tiny', cache_dir='.'); b = get('acme/qa', repo_type='dataset', cache_dir='.'); "
        "c = get('acme/tiny', revision='v1', cache_dir='.'); print(a, b, c, sep='\\n')"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": hub.token}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    model, data, old = (tmp_path / line for line in done.stdout.splitlines())
    assert model.name == hub.commit("models", "acme/tiny")
    assert old.name == hub.commit("models", "acme/tiny", "v1") != model.name
    for copy, folder in ((model, "models/acme/tiny"), (data, "datasets/acme/qa")):
        wanted = {path.relative_to(hub.root / folder) for path in (hub.root / folder).rglob("*") if path.is_file()}
        assert {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()} == wanted
        assert all(sha256_file(copy / one) == sha256_file(hub.root / folder / one) for one in wanted)


def test_a_revision_becomes_its_commit_and_all_later_requests_name_it(hub: Hub, tmp_path: Path) -> None:
    storage = connect(hub)
    commit = hub.commit("models", "acme/tiny")
    pinned = storage.pin(TINY)
    assert pinned == f"{TINY}@{commit}"
    assert storage.pin(TINY, "v1") == f"{TINY}@{hub.commit('models', 'acme/tiny', 'v1')}"
    hub.requests.clear()
    storage.download(f"{pinned}/config.json", tmp_path / "config.json")
    assert storage.read(f"{pinned}/config.json") == (tmp_path / "config.json").read_bytes()
    assert len(hub.requests) == 3
    assert all(commit in one.path for one in hub.requests)


def test_a_model_is_checked_by_its_headers_without_its_weights(hub: Hub, tmp_path: Path) -> None:
    storage = connect(hub)
    facts = check_model(storage.pin(TINY), storage, tmp_path / "text")
    assert (facts.parameters, facts.architecture) == (106_816, "LlamaForCausalLM")
    assert [one.range for one in hub.transfers(".safetensors") if one.server == "files"] == [
        "bytes=0-7",
        "bytes=8-2071",
    ]
    assert not list((tmp_path / "text").glob("*.safetensors"))


@pytest.mark.parametrize("page_size", [2, 1000])
def test_files_are_listed_over_pages_and_known_by_size_and_digest(hub: Hub, page_size: int) -> None:
    """The next page's address names another host, as behind a mirror: only its query is used."""
    hub.page_size = page_size
    storage = connect(hub, hub.token)
    entries = {entry.key: entry for entry in storage.list(storage.pin(TINY))}
    folder = hub.root / "models/acme/tiny"
    assert {key: entry.size for key, entry in entries.items()} == {
        path.name: path.stat().st_size for path in folder.iterdir()
    }
    assert entries["model.safetensors"].sha256 == sha256_file(folder / "model.safetensors")
    assert entries["config.json"].sha256 is None
    assert len(entries["config.json"].etag) == 40


def test_a_download_resumes_where_the_connection_broke(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 150_000
    counted: list[int] = []
    connect(hub).download(f"{TINY}/model.safetensors", tmp_path / "model", counted.append)
    assert sha256_file(tmp_path / "model") == sha256_file(hub.root / "models/acme/tiny/model.safetensors")
    ranges = [one.range for one in hub.transfers(".safetensors") if one.server == "files"]
    assert ranges == [None, "bytes=150000-", "bytes=300000-"]
    assert sum(counted) == (tmp_path / "model").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_server_without_ranges_is_read_from_the_start_again_but_not_forever(hub: Hub, tmp_path: Path) -> None:
    hub.knows_ranges, hub.break_after = False, 150_000
    with pytest.raises(StorageUnavailable, match="does not support resume"):
        connect(hub).download(f"{TINY}/model.safetensors", tmp_path / "model")
    hub.break_after = None
    connect(hub).download(f"{TINY}/model.safetensors", tmp_path / "model")
    assert sha256_file(tmp_path / "model") == sha256_file(hub.root / "models/acme/tiny/model.safetensors")
    part = connect(hub).read_range(f"{TINY}/model.safetensors", 100, 50)
    assert part == (tmp_path / "model").read_bytes()[100:150]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_arrives_changed_is_fetched_again_and_never_kept(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.corrupt = 1
    connect(hub).download(f"{TINY}/{name}", tmp_path / name)
    assert sha256_file(tmp_path / name) == sha256_file(hub.root / "models/acme/tiny" / name)
    hub.corrupt = 100
    with pytest.raises(StorageUnavailable, match="differs from the hub's listing"):
        connect(hub).download(f"{TINY}/{name}", tmp_path / "changed")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_token_goes_to_the_hub_alone(hub: Hub, tmp_path: Path) -> None:
    """The store behind the redirect refuses a token, as S3 does; so the download shows that none was sent."""
    hub.private.add("acme/tiny")
    connect(hub, hub.token).download(f"{TINY}/model.safetensors", tmp_path / "model")
    tokens = {(one.server, one.authorization) for one in hub.requests}
    assert tokens == {("hub", f"Bearer {hub.token}"), ("files", None)}


def test_no_telemetry_is_sent(hub: Hub) -> None:
    connect(hub).pin(TINY)
    assert len(hub.requests) == 1
    assert "torch" not in hub.requests[0].user_agent
    assert hub.requests[0].user_agent.startswith("finetune-trainer/")


def refusal(call: Callable[[], object]) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        call()
    return caught.value


def test_a_gated_model_names_the_licence_and_whose_token_is_used(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("acme/tiny")
    without = refusal(lambda: connect(hub).download(f"{TINY}/config.json", tmp_path / "x"))
    assert without.code is ExitCode.MODEL_UNAVAILABLE
    assert f"accept its licence at {hub.endpoint}/acme/tiny, and put that account's token into a Secret" in str(without)
    with_one = refusal(lambda: connect(hub, hub.token, secret="hub-token").read_range(f"{TINY}/config.json", 0, 8))
    assert with_one.code is ExitCode.MODEL_UNAVAILABLE
    assert "with the account of the token in the Secret hub-token named by spec.model.credentialsSecretRef" in (
        with_one.message
    )


@pytest.mark.parametrize(
    ("uri", "revision", "token", "code", "words"),
    [
        ("hf://acme/none", None, None, 66, "no such model, or it is private: correct spec.model.uri"),
        ("hf://acme/none", None, "hf_testtoken", 66, "no such model, or it is private"),
        (TINY, "v9", None, 66, "hf://acme/tiny@v9 at http"),
        (TINY, "v9", None, 66, "no such revision: correct spec.model.revision"),
        (TINY, "0" * 40, None, 66, "no such revision: correct spec.model.revision"),
        (TINY, None, "hf_expired", 66, "the token is invalid or has expired"),
        (
            "hf://datasets/acme/none",
            None,
            None,
            65,
            "no such dataset, or it is private: correct spec.dataset.train.uri",
        ),
        ("hf://datasets/acme/qa", "v9", None, 65, "no such revision: correct spec.dataset.train.revision"),
        ("hf://datasets/acme/qa", None, "hf_expired", 65, "the token is invalid or has expired"),
    ],
)
def test_what_a_hub_does_not_show_ends_with_the_fix(  # noqa: PLR0917 - the columns of a table
    hub: Hub, uri: str, revision: str | None, token: str | None, code: int, words: str
) -> None:
    error = refusal(lambda: connect(hub, token).pin(uri, revision))
    assert (error.code, words in error.message) == (code, True), error.message
    assert hub.endpoint in error.message
    assert "hf_expired" not in error.message
    assert len(hub.requests) == 1


@pytest.mark.parametrize("kind", ["gated", "private"])
def test_what_has_no_field_for_a_token_must_be_public(hub: Hub, kind: str) -> None:
    getattr(hub, kind).add("acme/tiny")
    storage = HubStore(HubConnection(hub.endpoint, fallback=Access("spec.rlhf.rewardModel", is_public=True)))
    error = refusal(lambda: storage.read(f"{TINY}/config.json"))
    assert error.code is ExitCode.MODEL_UNAVAILABLE
    assert "spec.rlhf.rewardModel is read without a token" in error.message
    assert "name a" in error.message
    assert "credentialsSecretRef" not in error.message


def test_outside_a_cluster_the_fix_is_a_variable(hub: Hub) -> None:
    hub.gated.add("acme/tiny")
    error = refusal(lambda: HubStore(HubConnection(hub.endpoint, is_here=True)).read(f"{TINY}/config.json"))
    assert error.message.endswith("and put that account's token into HF_TOKEN")


def test_a_private_repository_opens_with_a_token_and_not_without(hub: Hub) -> None:
    hub.private.add("acme/tiny")
    assert connect(hub, hub.token).pin(TINY)
    assert "or put a token into a Secret" in refusal(lambda: connect(hub).pin(TINY)).message


def test_a_file_that_is_not_there_reads_as_none_and_downloads_as_missing(hub: Hub, tmp_path: Path) -> None:
    storage = connect(hub)
    assert storage.read(f"{TINY}/none.json") is None
    assert storage.size(f"{TINY}/none.json") is None
    assert storage.list(f"{TINY}/none") == []
    for call in (lambda: storage.download(f"{TINY}/none.json", tmp_path / "x"), lambda: storage.sha256(f"{TINY}/no")):
        with pytest.raises(ObjectMissing, match="does not exist at http"):
            call()


def test_a_name_of_any_letters_is_found(hub: Hub, tmp_path: Path) -> None:
    storage = connect(hub)
    uri = "hf://datasets/acme/qa/data/ünï code.jsonl"
    storage.download(uri, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"{}\n"
    assert storage.sha256(uri) == sha256_file(tmp_path / "x")
    assert [entry.key for entry in storage.list("hf://datasets/acme/qa/data")] == ["train.jsonl", "ünï code.jsonl"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_hub_is_retried_after_the_time_that_it_requests(hub: Hub, status: int) -> None:
    hub.failures = [(status, {"Retry-After": "0"})] * 2
    assert connect(hub).pin(TINY)
    assert len(hub.requests) == 3


def test_a_stop_ends_the_retries_of_a_hub(hub: Hub) -> None:
    hub.failures = [(503, {})] * 1000
    stop = StopFlag()
    threading.Timer(1.0, stop.set).start()
    with pytest.raises((Stopped, StorageUnavailable)):
        connect(hub, stop=stop, retry_seconds=10_000.0).pin(TINY)


def test_a_stop_ends_a_download_and_keeps_no_file(hub: Hub, tmp_path: Path) -> None:
    def on_bytes(_count: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        connect(hub).download(f"{TINY}/model.safetensors", tmp_path / "model", on_bytes)
    assert not (tmp_path / "model").exists()


def test_an_endpoint_without_a_server_is_unavailable_and_the_message_names_what_to_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finetune_trainer.storage.hub.client.MIN_RETRY_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    storage = HubStore(HubConnection(f"http://127.0.0.1:{port}"))
    with pytest.raises(StorageUnavailable, match=r"\(ConnectError: Connection refused\): check spec\.hub\.endpoint"):
        storage.pin(TINY)


def test_another_server_at_the_endpoint_is_distinguished_from_a_hub(
    hub: Hub, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.storage.hub.client.MIN_RETRY_SECONDS", 0.1)
    error = refusal(lambda: HubStore(HubConnection(s3_server.endpoint)).pin(TINY))
    assert "spec.hub.endpoint" in error.message


def test_each_scheme_goes_to_its_own_store(hub: Hub) -> None:
    def no_s3() -> Any:
        raise AssertionError("S3 was asked")

    storage = RoutedStore(no_s3, lambda: connect(hub))
    assert storage.first(TINY) == Entry("config.json", *_size_and_etag(storage, "config.json"))
    with pytest.raises(AssertionError, match="S3 was asked"):
        storage.pin("s3://bucket/model")


def _size_and_etag(storage: RoutedStore, name: str) -> tuple[int, str]:
    entry = next(entry for entry in storage.list(TINY) if entry.key == name)
    return entry.size, entry.etag


def test_no_token_and_no_signed_address_is_logged(hub: Hub, tmp_path: Path) -> None:
    """Logging as the trainer's process sets it up: other libraries from warnings on."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    logging.getLogger().addHandler(handler)
    try:
        hub.failures = [(503, {})]
        hub.private.add("acme/tiny")
        hub.break_after = 150_000
        connect(hub, hub.token).download_folder(TINY, tmp_path, accept=is_model_file)
        refusal(lambda: connect(hub, "hf_expired").pin(TINY))
    finally:
        logging.getLogger().removeHandler(handler)
    assert hub.token not in out.getvalue()
    assert "hf_expired" not in out.getvalue()
    assert "Signature" not in out.getvalue()


def test_the_licence_is_read_from_the_card_in_the_repository(hub: Hub) -> None:
    storage = connect(hub)
    assert read_licence(storage.pin(TINY, "v1"), storage) == Licence(("apache-2.0",))
    assert read_licence(storage.pin(TINY, "main"), storage) is None
