"""A training whose result is pushed to a hub: the library loads from the repository what is in storage."""

from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from peft import PeftConfig
from safetensors.numpy import load_file
from training_world import MakeBench

from finetune_trainer.publishing import hub_push
from finetune_trainer.storage.hub.uris import HubConnection, connect_output_hub

REPO = "acme/helpdesk"


@pytest.mark.nightly
def test_the_adapter_of_a_training_is_in_the_repository_as_in_storage(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "tokens" / "output").mkdir(parents=True)
    with Hub(tmp_path / "hub", has_lfs=True).serving() as hub:
        (tmp_path / "tokens" / "output" / "HF_TOKEN").write_text(hub.token)

        def connect(spec: Any) -> HubConnection:
            return connect_output_hub(spec, tmp_path / "tokens")

        monkeypatch.setattr(hub_push, "connect_output_hub", connect)
        output = {"uri": "s3://bucket/output", "hub": {"repo": REPO, "credentialsSecretRef": {"name": "token"}}}
        bench = make_bench("LoRA", output=output, hub={"endpoint": hub.endpoint})
        report = bench.run()
        assert report.artifacts is not None
        assert report.artifacts.hub is not None
        assert report.artifacts.hub.commit == hub.commit("models", REPO), report.artifacts.hub.message
    pushed, stored = tmp_path / "hub" / "models" / REPO, bench.output / "adapter"
    names = sorted(path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file())
    assert sorted(path.relative_to(pushed).as_posix() for path in pushed.rglob("*") if path.is_file()) == names
    assert PeftConfig.from_pretrained(str(pushed)).peft_type == "LORA"
    weights = "adapter_model.safetensors"
    assert load_file(pushed / weights).keys() == load_file(stored / weights).keys()
    assert (pushed / "README.md").read_bytes() == (stored / "README.md").read_bytes()
