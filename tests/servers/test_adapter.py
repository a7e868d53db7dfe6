"""vLLM serves a job's adapter on its base, by the commands that the job's report prints."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import SERVERS
from report_snippets import answers, snippet
from safetensors.numpy import load_file, save_file
from vllm_server import PRINTED, Server, serving, shell

from finetune_trainer.report.serving import VLLM_DEFAULT_RANK, adapter_obstacles

pytestmark = pytest.mark.timeout(2700)

ADAPTER, ASK = "The adapter", "Ask it"
(LOAD,) = SERVERS
REFUSED = {
    "DoRA": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
}
"""What the server writes of an adapter with such a configuration."""


@pytest.fixture(scope="module")
def server(result: Any) -> Iterator[Server]:
    """The adapter on its base, copied and served as the report prints."""
    result.run(snippet(result.report, ADAPTER, "Copy the folders"))
    with serving(snippet(result.report, ADAPTER, "With vLLM"), result.folder) as running:
        yield running


def test_the_adapter_answers_as_in_the_report(server: Server, result: Any) -> None:
    assert len(set(answers(result.report).values())) == 2
    assert answers(result.report) != answers(result.report, "Base model")
    server.check_answers(result.report, ADAPTER)


def test_an_adapter_is_loaded_and_unloaded_while_the_server_runs(server: Server, result: Any) -> None:
    shell(LOAD.replace(PRINTED, server.url).replace("/models/support-bot", str(server.folder)), server.folder)
    assert server.models() == {"base", "tuned", "support-bot"}
    ask = snippet(result.report, ADAPTER, ASK)
    for question, answer in answers(result.report).items():
        reply = server.run(ask, Hello=question, tuned="support-bot")
        assert reply["choices"][0]["message"]["content"].strip() == answer
    assert server.post("/v1/unload_lora_adapter", lora_name="support-bot")[0] == 200
    assert server.models() == {"base", "tuned"}
    assert server.run(ask, tuned="support-bot")["error"]["code"] == 404


def test_an_adapter_of_a_higher_rank_is_refused_and_its_report_names_the_flag(
    server: Server, wide: Any, result: Any
) -> None:
    wide.run(snippet(wide.report, ADAPTER, "Copy the folders"))
    status, text = server.post("/v1/load_lora_adapter", lora_name="wide", lora_path=str(wide.folder / "adapter"))
    assert status >= 400
    assert f"LoRA rank 24 is greater than max_lora_rank {VLLM_DEFAULT_RANK}" in text
    assert "--max-lora-rank" not in "".join(re.findall(r"^\| `adapter/`.*$", result.report, re.MULTILINE))
    assert "rank 24 is above the server's default of 16; 24 itself is not a value that it accepts" in wide.report
    assert "start it with `--max-lora-rank 32`" in wide.report


def change_adapter(folder: Path, target: Path, **changes: Any) -> dict[str, Any]:
    """Copy an adapter with another configuration, and return that."""
    shutil.copytree(folder, target)
    config = json.loads((target / "adapter_config.json").read_text()) | changes
    (target / "adapter_config.json").write_text(json.dumps(config))
    return dict(config)


@pytest.mark.parametrize("words", REFUSED)
def test_what_the_report_calls_an_obstacle_is_refused(server: Server, tmp_path: Path, words: str) -> None:
    config = change_adapter(server.folder / "adapter", tmp_path / "adapter", **REFUSED[words])
    assert [one.is_final for one in adapter_obstacles(config)] == [True]
    status, text = server.post("/v1/load_lora_adapter", lora_name="changed", lora_path=str(tmp_path / "adapter"))
    assert status >= 400
    assert words in text


def test_an_adapter_on_the_output_head_is_served_for_this_architecture(server: Server, tmp_path: Path) -> None:
    """The report advises the full model, because other architectures refuse it."""
    folder = tmp_path / "adapter"
    config = change_adapter(server.folder / "adapter", folder, target_modules=["q_proj", "lm_head"])
    assert "for some architectures only" in adapter_obstacles(config)[0].reason
    tensors = load_file(folder / "adapter_model.safetensors")
    head = "base_model.model.lm_head.lora_{}.weight"
    tensors |= {head.format("A"): np.zeros((16, 64), np.float32), head.format("B"): np.zeros((512, 16), np.float32)}
    save_file(tensors, folder / "adapter_model.safetensors")
    status, text = server.post("/v1/load_lora_adapter", lora_name="head", lora_path=str(folder))
    assert status == 200, text
    assert server.post("/v1/unload_lora_adapter", lora_name="head")[0] == 200


def test_peft_answers_as_in_the_report(server: Server, result: Any) -> None:
    code = snippet(result.report, ADAPTER, "With PEFT, in Python")
    question, answer = next(iter(answers(result.report).items()))
    assert '"Hello"' in code
    command = [sys.executable, "-c", code.replace('"Hello"', json.dumps(question))]
    done = subprocess.run(command, cwd=server.folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.rstrip().endswith(f"{answer}<|im_end|>")
