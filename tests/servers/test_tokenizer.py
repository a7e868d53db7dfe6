"""vLLM reads the prompts of a result as it was trained with the flags that its report prints, and a release finds out
if it does not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from released_results import publish_result, release_config
from report_snippets import answers, snippet
from vllm_server import Server, serving

from finetune_api.release import ReleaseReport
from finetune_trainer.release.release import release
from finetune_trainer.storage.local import LocalStore

pytestmark = pytest.mark.timeout(2700)

ADAPTER = "The adapter"
FLAG = re.compile(r" --tokenizer \S+")


def release_to(server: Server, adapter: Path, folder: Path) -> ReleaseReport:
    """Release a result with the tokenizer, the weights and the configuration of an adapter."""
    volume = folder / "adapters"
    volume.mkdir(parents=True)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tokenizer / name).write_bytes((adapter / name).read_bytes())
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    result = publish_result(
        folder / "result", "s3://bucket/result", adapter=config, weights=weights, tokenizer=tokenizer
    )
    target = {"url": server.url, "adapterName": "bot", "volume": {"claimName": "a", "path": str(volume)}}
    store = LocalStore({"s3://bucket/result": folder / "result"})
    return release(release_config(result, {"vllm": target}), store, folder / "work", volume)


def test_a_result_whose_base_is_read_otherwise_answers_as_in_its_report_with_the_printed_flag(
    spaced: Any, tmp_path: Path
) -> None:
    spaced.run(snippet(spaced.report, ADAPTER, "Copy the folders"))
    command = snippet(spaced.report, ADAPTER, "With vLLM")
    assert FLAG.search(command), command
    assert len(set(answers(spaced.report).values())) == 2
    with serving(command, spaced.folder) as server:
        server.check_answers(spaced.report, ADAPTER)
        found = release_to(server, spaced.folder / "adapter", tmp_path / "with")
        assert found.outcome == "Released", found.message
        assert "does not read" not in found.message
    with serving(FLAG.sub("", command), spaced.folder) as server:
        found = release_to(server, spaced.folder / "adapter", tmp_path / "without")
        assert found.outcome == "Refused", found.message
        assert "its tokenizer gives other tokens" in found.message
        assert "start it with `--tokenizer " in found.message
