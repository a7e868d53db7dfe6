import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.hub.uris import (
    Kind,
    Repo,
    connect_hub,
    connect_hub_here,
    parse_commit,
    parse_hub_uri,
    pinned_model_uri,
    repo_name,
    strip_commit,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TINY = Repo(Kind.MODEL, "acme/tiny")
QA = Repo(Kind.DATASET, "acme/qa")


def spec(**changes: Any) -> FineTuneJobSpec:
    content = {
        "objective": "Chat",
        "model": {"uri": "hf://acme/tiny"},
        "dataset": {"train": {"uri": "hf://datasets/acme/qa/data/*.jsonl"}},
        "output": {"uri": "s3://bucket/out"},
    }
    return FineTuneJobSpec.model_validate(content | changes)


def token(directory: Path, role: str, content: str) -> None:
    (directory / role).mkdir()
    (directory / role / "HF_TOKEN").write_text(content)


@pytest.mark.parametrize(
    ("uri", "repo", "commit", "path"),
    [
        ("hf://acme/tiny", TINY, None, ""),
        (f"hf://acme/tiny@{COMMIT}/a/b.json", TINY, COMMIT, "a/b.json"),
        ("hf://datasets/acme/qa", QA, None, ""),
        (f"hf://datasets/acme/qa@{COMMIT}", QA, COMMIT, ""),
        ("hf://datasets/acme/qa/data/*@x.jsonl", QA, None, "data/*@x.jsonl"),
    ],
)
def test_an_address_is_read_and_written_alike(uri: str, repo: Repo, commit: str | None, path: str) -> None:
    address = parse_hub_uri(uri)
    assert (address.repo, address.commit, address.path) == (repo, commit, path)
    assert str(address) == uri
    assert strip_commit(uri) == uri.replace(f"@{COMMIT}", "")
    assert parse_commit(uri) == commit


def test_an_s3_uri_with_an_at_sign_is_not_changed() -> None:
    assert strip_commit("s3://bucket/a@b/c") == "s3://bucket/a@b/c"
    assert parse_commit(f"s3://bucket/a@{COMMIT}") is None
    assert repo_name("s3://bucket/model") == "s3://bucket/model"
    assert repo_name("hf://acme/tiny") == "acme/tiny"


def test_a_model_is_read_at_its_commit_once_it_is_known() -> None:
    model = spec().model
    assert pinned_model_uri(model) == "hf://acme/tiny"
    assert pinned_model_uri(model.model_copy(update={"revision": "v1"})) == "hf://acme/tiny"
    assert pinned_model_uri(model.model_copy(update={"revision": COMMIT})) == f"hf://acme/tiny@{COMMIT}"


def test_each_repository_has_its_own_mounted_token(tmp_path: Path) -> None:
    token(tmp_path, "model", "hf_model\n")
    token(tmp_path, "train", "hf_rows")
    connection = connect_hub(spec(), tokens_dir=tmp_path)
    assert connection.endpoint == "https://huggingface.co"
    assert connection.access(TINY).token == "hf_model"
    assert connection.access(QA).token == "hf_rows"
    assert connection.access(Repo(Kind.DATASET, "acme/tiny")).token is None


def test_one_token_opens_a_repository_for_both_of_its_sources(tmp_path: Path) -> None:
    token(tmp_path, "validation", "hf_rows")
    dataset = {"train": {"uri": "hf://datasets/acme/qa/a.csv"}, "validation": {"uri": "hf://datasets/acme/qa/b.csv"}}
    assert connect_hub(spec(dataset=dataset), tokens_dir=tmp_path).access(QA).token == "hf_rows"


def test_sources_of_rows_share_a_token_and_are_named_one_by_one(tmp_path: Path) -> None:
    token(tmp_path, "train", "hf_rows")
    sources = [{"uri": "s3://bucket/a"}, {"uri": "hf://datasets/acme/qa"}, {"uri": "hf://datasets/acme/more"}]
    train = {"sources": sources, "credentialsSecretRef": {"name": "hub-token"}}
    connection = connect_hub(spec(dataset={"train": train}), tokens_dir=tmp_path)
    accesses = [connection.access(repo) for repo in (QA, Repo(Kind.DATASET, "acme/more"))]
    assert [one.token for one in accesses] == ["hf_rows", "hf_rows"]
    assert [one.place for one in accesses] == [f"spec.dataset.train.sources[{at}]" for at in (1, 2)]
    assert {one.token_field for one in accesses} == {"spec.dataset.train.credentialsSecretRef"}
    (tmp_path / "train" / "HF_TOKEN").unlink()
    with pytest.raises(TrainerError, match=r"named by spec\.dataset\.train\.credentialsSecretRef needs"):
        connect_hub(spec(dataset={"train": train}), tokens_dir=tmp_path)


@pytest.mark.parametrize("content", ["hf_secret\nhf_more", "hf_sécret", "hf secret"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    token(tmp_path, "model", content)
    with pytest.raises(TrainerError, match=r"key HF_TOKEN of the Secret .* contains no valid token") as caught:
        connect_hub(spec(), tokens_dir=tmp_path)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert content[:4] not in caught.value.message.replace("HF_TOKEN", "")


def test_a_secret_without_its_key_is_named(tmp_path: Path) -> None:
    gated = spec(model={"uri": "hf://acme/tiny", "credentialsSecretRef": {"name": "hub-token"}})
    with pytest.raises(
        TrainerError, match=r"Secret hub-token named by spec\.model\.credentialsSecretRef needs the key"
    ):
        connect_hub(gated, tokens_dir=tmp_path)


def test_an_authority_that_is_not_mounted_is_an_invalid_config(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"spec\.hub\.caSecretRef needs the key ca\.crt"):
        connect_hub(spec(hub={"caSecretRef": {"name": "ca"}}), tmp_path, tmp_path)


def test_a_run_on_this_machine_uses_its_own_token_and_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    mine = spec(model={"uri": "hf://acme/tiny", "credentialsSecretRef": {"name": "in-a-cluster"}})
    connection = connect_hub_here(mine)
    assert (connection.endpoint, connection.access(TINY).token) == ("https://mirror.example", "hf_mine")
    assert connect_hub_here(spec(hub={"endpoint": "https://hub.example"})).endpoint == "https://hub.example"


@pytest.mark.parametrize(
    ("own", "asked", "named", "sent"),
    [
        (None, "https://hub.example", [], False),
        (None, "https://hub.example", ["https://other.example"], False),
        (None, "https://hub.example", ["https://hub.example/"], True),
        (None, "https://huggingface.co", [], True),
        ("https://hub.example", "https://hub.example/", [], True),
        ("https://hub.example", "https://huggingface.co", [], False),
        ("http://hub.example", None, ["http://hub.example"], False),
        ("http://localhost:8080", None, [], True),
        (None, "http://localhost:8080", [], False),
        (None, "http://localhost:8080", ["http://localhost:8080"], True),
    ],
)
def test_the_token_of_this_machine_goes_to_its_own_hub_or_one_that_the_user_names(
    monkeypatch: pytest.MonkeyPatch, own: str | None, asked: str | None, named: list[str], sent: bool
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("HF_ENDPOINT", own or "")
    connection = connect_hub_here(spec(hub={"endpoint": asked}) if asked else spec(), named)
    assert (connection.access(TINY).token, connection.withheld is None) == ("hf_mine" if sent else None, sent)
    assert "hf_mine" not in (connection.withheld or "")


def test_a_hub_without_a_token_of_this_machine_is_read_without_a_remark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert connect_hub_here(spec(hub={"endpoint": "https://hub.example"})).withheld is None


def test_the_token_does_not_go_through_a_proxy_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8080")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    connection = connect_hub_here(spec())
    assert connection.access(TINY).token is None
    assert (connection.withheld or "").endswith("add 127.0.0.1 to NO_PROXY")


@pytest.mark.parametrize("value", ["mirror.example.com", "ftp://mirror", "https://", "http://mirror:99999"])
def test_an_endpoint_that_is_not_a_url_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", value)
    with pytest.raises(TrainerError) as caught:
        connect_hub_here(spec())
    assert caught.value.message.startswith(f"HF_ENDPOINT is '{value}': write https://host")
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_adapters_and_reward_models_have_their_own_place_and_no_token(tmp_path: Path) -> None:
    token(tmp_path, "model", "hf_model")
    connection = connect_hub(spec(tuning={"initialAdapter": {"uri": "hf://acme/adapter"}}), tokens_dir=tmp_path)
    adapter = connection.access(Repo(Kind.MODEL, "acme/adapter"))
    assert (adapter.place, adapter.token, adapter.is_public) == ("spec.tuning.initialAdapter", None, True)
    assert connection.access(Repo(Kind.MODEL, "acme/base-of-it")).place == "spec.tuning.initialAdapter"


def test_a_teacher_has_a_token_of_its_own(tmp_path: Path) -> None:
    token(tmp_path, "teacher", "hf_teacher")
    teacher = {"uri": "hf://acme/larger", "credentialsSecretRef": {"name": "larger"}}
    connection = connect_hub(spec(objective="Distillation", distillation={"teacher": teacher}), tokens_dir=tmp_path)
    access = connection.access(Repo(Kind.MODEL, "acme/larger"))
    assert (access.place, access.token) == ("spec.distillation.teacher", "hf_teacher")


def test_on_this_machine_its_token_opens_adapters_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    connection = connect_hub_here(spec(tuning={"initialAdapter": {"uri": "hf://acme/adapter"}}))
    assert {connection.access(Repo(Kind.MODEL, f"acme/{name}")).token for name in ("adapter", "base")} == {"hf_mine"}


def test_no_token_is_in_what_is_printed(tmp_path: Path) -> None:
    token(tmp_path, "model", "hf_model")
    assert "hf_model" not in repr(connect_hub(spec(), tokens_dir=tmp_path))


@pytest.mark.process
def test_a_job_without_a_hub_does_not_load_its_library() -> None:
    code = (
        "import sys, finetune_trainer.pipeline.preflight, finetune_trainer.commands.run;"
        "print('huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("module", ["storage", "uris"])
@pytest.mark.process
def test_the_hubs_client_loads_no_torch_and_keeps_the_library_itself_offline(module: str) -> None:
    code = (
        f"import sys, finetune_trainer.storage.hub.{module}, huggingface_hub.constants as c; "
        "print('torch' in sys.modules, 'transformers' in sys.modules, c.HF_HUB_OFFLINE, c.HF_HUB_DISABLE_TELEMETRY)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "True"]
