"""The model cache before a hub: what runs that share it download, and what is left when one is killed."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub
from tiny_model import make_tiny_model

from finetune_api.handoff import JobConfig, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.models.files.base_model import list_model_files, pin_model
from finetune_trainer.models.files.cache import fetch_model
from finetune_trainer.storage.hub.storage import HubStore
from finetune_trainer.storage.hub.uris import HubConnection, pinned_model_uri
from finetune_trainer.storage.protocol import sha256_file

FETCH = """
import sys
from pathlib import Path

from finetune_api.handoff import JobConfig
from finetune_trainer.storage.hub.uris import HubConnection, pinned_model_uri
from finetune_trainer.storage.hub.storage import HubStore
from finetune_trainer.models.files.base_model import list_model_files
from finetune_trainer.models.files.cache import fetch_model

config = JobConfig.model_validate_json(Path(sys.argv[1]).read_text())
storage = HubStore(HubConnection(sys.argv[2]))
entries = list_model_files(pinned_model_uri(config.spec.model), storage)
print(fetch_model(config, entries, storage, Path("workspace"), lambda _count: None, cache=Path(sys.argv[3])))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    make_tiny_model(tmp_path / "hub" / "models" / "acme" / "tiny")
    with Hub(tmp_path / "hub").serving() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def job(hub: Hub, name: str = "one") -> JobConfig:
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "hub": {"endpoint": hub.endpoint},
            "model": {"uri": "hf://acme/tiny"},
            "modelCache": {"claimName": "models"},
            "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
            "output": {"uri": f"s3://bucket/{name}"},
        }
    )
    config = JobConfig(namespace="team", name=name, uid=name, config_sha256=config_sha256(spec), spec=spec)
    return pin_model(config, connect(hub))


def connect(hub: Hub) -> HubStore:
    return HubStore(HubConnection(hub.endpoint))


def fetch(hub: Hub, cache: Path, workspace: Path, name: str = "one") -> Path:
    config, storage = job(hub, name), connect(hub)
    entries = list_model_files(pinned_model_uri(config.spec.model), storage)
    return fetch_model(config, entries, storage, workspace, lambda _count: None, cache=cache)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def transferred(hub: Hub) -> int:
    return len([one for one in hub.transfers() if one.server == "hub"])


def test_jobs_that_share_a_claim_download_a_model_once(hub: Hub, cache: Path, tmp_path: Path) -> None:
    first = fetch(hub, cache, tmp_path / "workspace", "one")
    count = transferred(hub)
    second = fetch(hub, cache, tmp_path / "workspace", "two")
    assert first == second
    assert first.is_relative_to(cache)
    assert digests(first) == digests(hub.root / "models" / "acme" / "tiny")
    assert (count, transferred(hub)) == (5, 5)
    assert not (tmp_path / "workspace").exists()


def test_a_new_commit_is_a_new_entry_next_to_the_old_one(hub: Hub, cache: Path, tmp_path: Path) -> None:
    model = hub.root / "models" / "acme" / "tiny"
    old = fetch(hub, cache, tmp_path / "workspace")
    before = digests(old)
    make_tiny_model(model, seed=1)
    new = fetch(hub, cache, tmp_path / "workspace")
    assert new != old
    assert digests(new) == digests(model) != before
    assert digests(old) == before


def test_when_a_run_is_killed_in_mid_file_the_next_one_resumes_at_that_byte(
    hub: Hub, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(job(hub).model_dump_json(by_alias=True))
    hub.stall_after = 100_000
    killed = subprocess.Popen(
        [sys.executable, "-c", FETCH, str(tmp_path / "config.json"), hub.endpoint, str(cache)], cwd=tmp_path
    )
    try:
        assert hub.stalled.wait(600)
        part = wait_for_part(cache, killed)
    finally:
        killed.kill()
        killed.wait()
    there = part.stat().st_size
    hub.stall_after = None
    hub.requests.clear()

    found = fetch(hub, cache, tmp_path / "workspace")
    assert digests(found) == digests(hub.root / "models" / "acme" / "tiny")
    ranges = [one.range for one in hub.transfers("model.safetensors") if one.server == "files"]
    assert ranges == [f"bytes={there}-"]
    assert not part.exists()
    assert sorted(path.suffix for path in (cache / "v1").iterdir()) == ["", ".lock"]


def wait_for_part(cache: Path, process: "subprocess.Popen[bytes]") -> Path:
    """The file that is being downloaded, once some of it lies there."""
    while process.poll() is None:
        for path in cache.rglob("model.safetensors.part"):
            if path.stat().st_size:
                return path
        time.sleep(0.02)
    raise AssertionError("the run ended by itself")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_from_another_writer_is_detected(hub: Hub, cache: Path, tmp_path: Path, name: str) -> None:
    """Also where the entry's own record was changed with it: the hub tells what the file is."""
    found = fetch(hub, cache, tmp_path / "workspace")
    record = found.parent / "complete.json"
    before, content = sha256_file(found / name), (found / name).read_bytes()
    (found / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    record.write_text(record.read_text().replace(before, sha256_file(found / name)))
    assert digests(fetch(hub, cache, tmp_path / "workspace")) == digests(hub.root / "models" / "acme" / "tiny")


def test_a_claim_with_other_files_is_reported_and_does_not_fail_the_run(
    hub: Hub, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cache / "v1").write_text("in the way of the folder")
    found = fetch(hub, cache, tmp_path / "workspace")
    assert found == tmp_path / "workspace"
    assert digests(found) == digests(hub.root / "models" / "acme" / "tiny")
    assert f"the model cache is not used: File exists: {cache / 'v1'}" in caplog.text


def test_a_full_volume_is_reported_and_the_model_goes_into_the_workspace(
    hub: Hub, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.models.files.cache.SPARE_BYTES", 2**62)
    assert fetch(hub, cache, tmp_path / "workspace") == tmp_path / "workspace"
    assert "bytes free and the model needs" in caplog.text
