"""A tiny model folder, rows, and a job whose URIs are local folders: everything real but the size."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from finetune_api.handoff import JobConfig, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.local import LocalStore

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        ["what is one plus two"],
        trainers.BpeTrainer(
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return str(tokenizer.to_str())


@pytest.fixture
def model_folder(tmp_path: Path, tokenizer_json: str) -> Path:
    folder = tmp_path / "bucket" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (folder / "tokenizer.json").write_text(tokenizer_json)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    save_file(
        {"a": np.zeros((3, 5), dtype=np.float32), "b": np.zeros((7,), dtype=np.float16)}, folder / "model.safetensors"
    )
    return folder


def good_row(index: int) -> str:
    return json.dumps({"instruction": f"what is {index} plus one", "output": str(index + 1)})


@pytest.fixture
def rows_file(model_folder: Path) -> Path:
    """100 good rows in front of 10 that are not."""
    bad = ["{", "[]", '{"title": "no format"}', '{"instruction": "no answer", "output": ""}', "not json"] * 2
    path = model_folder.parent / "rows.jsonl"
    path.write_text("\n".join([*(good_row(index) for index in range(100)), *bad]) + "\n")
    return path


SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "s3://bucket/model"},
    "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}, "validationSplitPercent": 20},
    "hyperparameters": {"maxLength": 128},
    "output": {"uri": "s3://bucket/out"},
}


def make_config(changes: dict[str, Any] | None = None, *, name: str = "job", uid: str = "uid-1") -> JobConfig:
    spec = FineTuneJobSpec.model_validate(SPEC | (changes or {}))
    return JobConfig(namespace="team", name=name, uid=uid, config_sha256=config_sha256(spec), spec=spec)


@dataclass
class World:
    """One job's surroundings."""

    config: JobConfig
    storage: LocalStore
    bucket: Path
    workspace: Path
    reporter: Reporter
    stop: StopFlag

    def with_config(self, changes: dict[str, Any] | None = None, **names: str) -> "World":
        self.config = make_config(changes, **names)
        return self

    @property
    def run(self) -> RunContext:
        return RunContext(self.config, self.storage, self.workspace, self.reporter, self.stop)

    @property
    def out(self) -> Path:
        return self.bucket / "out"


@pytest.fixture
def world(rows_file: Path, tmp_path: Path) -> World:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    storage = LocalStore({"s3://bucket": rows_file.parent})
    reporter = Reporter("uid-1", out=io.StringIO())
    return World(make_config(), storage, rows_file.parent, workspace, reporter, StopFlag())


@pytest.fixture
def job_config() -> Callable[..., JobConfig]:
    return make_config
