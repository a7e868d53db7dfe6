"""Pushes of a published result to a hub on loopback, in the real hub's protocol, and everything that refuses them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from trainer_world import World

from finetune_api.handoff import ExitCode, Outcome, Report
from finetune_api.output import HubPush
from finetune_trainer.entrypoints.pod import find_published
from finetune_trainer.errors import Stopped, StorageUnavailable, TrainerError
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.publishing import hub_push
from finetune_trainer.publishing.publish import publish
from finetune_trainer.publishing.pushes import check_pushes, push_published
from finetune_trainer.storage.hub import push
from finetune_trainer.storage.hub.uris import HubConnection, connect_output_hub

REPO = "acme/helpdesk"
CARD = "---\nlibrary_name: peft\n---\n# Helpdesk\n"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    with Hub(tmp_path / "hub", has_lfs=True).serving() as running:
        yield running


@pytest.fixture
def tokens(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mounted token; the push connects with it, and waits no longer than a test."""
    folder = tmp_path / "tokens" / "output"
    folder.mkdir(parents=True)
    (folder / "HF_TOKEN").write_text(f"{hub.token}\n")

    def connect(spec: Any) -> HubConnection:
        return connect_output_hub(spec, tmp_path / "tokens")

    monkeypatch.setattr(hub_push, "connect_output_hub", connect)
    monkeypatch.setattr(hub_push, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(push, "MIN_RETRY_SECONDS", 0.5)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)
    return folder


@pytest.fixture
def job(world: World, hub: Hub, tokens: Path) -> Callable[..., World]:
    def make(folder: str = "adapter", spec: dict[str, Any] | None = None, **output: Any) -> World:
        own: dict[str, Any] = {"repo": REPO, "credentialsSecretRef": {"name": "write-token"}} | output
        out = {"uri": "s3://bucket/out", "hub": own} | ({"merge": "BF16"} if folder == "merged" else {})
        return world.with_config({"output": out, "hub": {"endpoint": hub.endpoint}} | (spec or {}))

    return make


def written(world: World, folder: str, weights: bytes = b"w" * 200_000) -> Path:
    result = world.workspace / "result"
    (result / folder).mkdir(parents=True, exist_ok=True)
    (result / folder / "README.md").write_text(CARD)
    if folder == "adapter":
        (result / folder / "adapter_config.json").write_text("{}")
        (result / folder / "adapter_model.safetensors").write_bytes(weights)
    else:
        (result / folder / "config.json").write_text("{}")
        (result / folder / "model.safetensors").write_bytes(weights)
    (result / "finetune_report.md").write_text("# Rows of the customer\n")
    return result


def published(world: World, folder: str = "adapter", outcome: Outcome = Outcome.PUBLISHED) -> Report:
    config = world.config
    report = Report(
        outcome=outcome, reason="Published", message="m", job_uid=config.uid, config_sha256=config.config_sha256
    )
    return publish(world.run, written(world, folder), report)


def pushed(world: World, report: Report) -> HubPush:
    found = push_published(world.run, report)
    assert found.outcome is report.outcome
    assert found.artifacts is not None
    assert found.artifacts.hub is not None
    return found.artifacts.hub


def test_a_published_adapter_is_pushed_privately_with_its_card_and_no_other_file(
    job: Callable[..., World], hub: Hub
) -> None:
    world = job()
    check_pushes(world.run)
    assert not (hub.root / "models").exists()
    found = pushed(world, published(world))
    commit = hub.commit("models", REPO)
    assert found == HubPush(repo=REPO, revision="main", commit=commit, url=f"{hub.endpoint}/{REPO}/tree/{commit}")
    folder = hub.root / "models" / REPO
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert (folder / "adapter_model.safetensors").read_bytes() == b"w" * 200_000
    assert (folder / "README.md").read_text() == CARD
    assert REPO in hub.private
    assert all(title.startswith("FineTuneJob team/job, manifest ") for _, _, title, _ in hub.commits)


def test_a_run_that_finds_the_result_pushes_what_is_in_storage_and_makes_no_second_commit(
    job: Callable[..., World], hub: Hub
) -> None:
    world = job()
    report = published(world)
    first = pushed(world, report)
    (world.workspace / "result" / "adapter" / "README.md").write_text("another workspace")
    again = pushed(world, report.model_copy(update={"outcome": Outcome.ADOPTED}))
    assert again == first
    assert len(hub.commits) == 1
    assert not (world.workspace / "hub-push").exists()


@pytest.mark.parametrize("find", [preflight, find_published], ids=["preflight", "trainer"])
def test_a_job_that_is_created_again_with_a_correct_hub_adopts_its_result_and_pushes_it(
    world: World, job: Callable[..., World], hub: Hub, find: Callable[..., Report | None]
) -> None:
    published(world.with_config())
    before = world.config.config_sha256
    report = find(job().run)
    assert world.config.config_sha256 == before
    assert report is not None
    assert report.artifacts is not None
    assert report.artifacts.hub is not None
    assert report.artifacts.hub.commit == hub.commit("models", REPO)


def test_a_full_model_is_pushed_to_a_branch_and_replaces_weights_that_would_be_loaded_in_its_place(
    job: Callable[..., World], hub: Hub
) -> None:
    main = hub.root / "models" / REPO
    main.mkdir(parents=True)
    hub.private.add(REPO)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
        (main / name).write_text("old")
    world = job("merged", revision="v2")
    check_pushes(world.run)
    found = pushed(world, published(world, "merged"))
    branch = main.with_name(f"{main.name}@v2")
    assert sorted(path.name for path in branch.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]
    assert found.commit == hub.commit("models", REPO, "v2")
    assert (main / "model-00001-of-00002.safetensors").exists()


@pytest.mark.parametrize(("folder", "existing"), [("adapter", "model.safetensors"), ("merged", "adapter_config.json")])
def test_an_adapter_and_a_full_model_are_never_mixed(
    job: Callable[..., World], hub: Hub, folder: str, existing: str
) -> None:
    (hub.root / "models" / REPO).mkdir(parents=True)
    (hub.root / "models" / REPO / existing).write_text("{}")
    hub.private.add(REPO)
    world = job(folder, {} if folder == "merged" else {"tuning": {"method": "LoRA"}})
    with pytest.raises(TrainerError, match=r"mixture of both; name another repository in spec\.output\.hub\.repo"):
        check_pushes(world.run)
    assert "mixture of both" in (pushed(world, published(world, folder)).message or "")
    assert hub.commits == []


def with_public(hub: Hub) -> None:
    (hub.root / "models" / REPO).mkdir(parents=True)


def with_read_only(hub: Hub) -> None:
    with_public(hub)
    hub.private.add(REPO)
    hub.read_only.add(REPO)


def with_role(hub: Hub) -> None:
    hub.role = "read"


def with_other_account(hub: Hub) -> None:
    hub.account, hub.organisations = "jo", {"other": "admin"}


def with_reader(hub: Hub) -> None:
    hub.account, hub.organisations = "jo", {"acme": "read"}


def with_other_token(hub: Hub) -> None:
    hub.token = "hf_rotated"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (with_public, r"is public, and spec\.output\.hub\.private is true: make it private"),
        (
            with_read_only,
            r"403: Forbidden: you do not have write permission.*right to write, or correct spec\.output\.hub",
        ),
        (with_role, r"the token in the Secret write-token can only read"),
        (
            with_other_account,
            r"is of jo, who cannot create one for acme: correct spec\.output\.hub\.repo, or the token",
        ),
        (with_reader, r"can only read in the organisation acme"),
        (with_other_token, r"refuses the token in the Secret write-token \(401"),
    ],
)
def test_preflight_refuses_a_push_that_would_fail_and_after_training_it_costs_no_result(
    job: Callable[..., World], hub: Hub, fault: Callable[[Hub], None], words: str
) -> None:
    fault(hub)
    world = job()
    with pytest.raises(TrainerError, match=words) as caught:
        check_pushes(world.run)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    if fault is with_reader or fault is with_role:
        return  # the hub itself decides at the push
    found = pushed(world, published(world))
    assert found.commit is None
    assert "delete the job and create it again: the published result is adopted and pushed" in (found.message or "")
    assert hub.commits == []
    assert hub.token not in (found.message or "")


def test_a_job_without_a_token_is_refused(job: Callable[..., World], tokens: Path) -> None:
    (tokens / "HF_TOKEN").unlink()
    world = job(credentialsSecretRef=None)
    with pytest.raises(TrainerError, match=r"no token to push with: set credentialsSecretRef to a Secret with the key"):
        check_pushes(world.run)


@pytest.mark.parametrize(
    "refusal", [("create", 403), ("validate", 400), ("preupload", 500), ("batch", 507), ("put", 403), ("commit", 413)]
)
def test_a_refused_step_is_reported_in_the_hubs_words_without_tokens_and_signed_addresses(
    job: Callable[..., World], hub: Hub, refusal: tuple[str, int], caplog: Any, capfd: Any
) -> None:
    kind, status = refusal
    hub.refusals[kind] = (status, f"no room for {hub.token} at https://files.example/x?X-Amz-Signature=secret")
    world = job()
    report = published(world)
    found = pushed(world, report)
    text = "".join([found.message or "", *capfd.readouterr(), *(one.getMessage() for one in caplog.records)])
    assert f"{status}: no room for … at …" in (found.message or "")
    assert hub.token not in text
    assert "X-Amz-Signature" not in text
    assert json.loads((world.out / "manifest.json").read_text())["result"]["outcome"] == "Published"
    hub.refusals.clear()
    assert pushed(world, report).commit == hub.commit("models", REPO)


def test_a_push_is_left_at_sigterm_and_when_the_hub_stalls(
    job: Callable[..., World], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = job()
    report = published(world)
    monkeypatch.setattr(push, "IDLE_SECONDS", -1.0)
    monkeypatch.setattr(push, "POLL_SECONDS", 0.001)
    assert "does not respond" in (pushed(world, report).message or "")
    world.stop.set()
    with pytest.raises(Stopped):
        push_published(world.run, report)


def test_a_hub_that_is_away_is_retried_by_preflight_and_costs_no_result(job: Callable[..., World]) -> None:
    world = job(spec={"hub": {"endpoint": "http://127.0.0.1:9"}})
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        check_pushes(world.run)
    assert "cannot be reached" in (pushed(world, published(world)).message or "")


def test_nothing_is_pushed_of_a_result_that_did_not_meet_its_gate_or_of_a_run_without_a_cluster(
    job: Callable[..., World], hub: Hub
) -> None:
    world = job()
    report = published(world, outcome=Outcome.GATE_NOT_MET)
    assert push_published(world.run, report) == report
    world.config = world.config.model_copy(update={"is_local": True})
    local = report.model_copy(update={"outcome": Outcome.PUBLISHED})
    assert push_published(world.run, local) == local
    assert hub.requests == []
