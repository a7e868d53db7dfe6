"""Real training of a tiny random Llama on the CPU, through the same preflight and train as in a pod."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from finetune_api.handoff import JobConfig, Report, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.local_storage import LocalStorage
from finetune_trainer.preflight import preflight
from finetune_trainer.progress import Reporter
from finetune_trainer.stop import StopFlag
from finetune_trainer.storage import Storage

COLOURS = ["red", "green", "blue", "black", "white"]
THINGS = ["sky", "sea", "rose", "snow", "coal", "leaf", "sand", "wine", "moss", "milk", "rust", "plum"]


def _load(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "fixtures" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _no_store() -> Storage:
    raise AssertionError("a test reached for a real store")


def make_rows(count: int) -> list[dict[str, object]]:
    """Questions with a learnable answer, each different."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is the colour of {THINGS[n % 12]} {n}?"},
                {"role": "assistant", "content": f"The {THINGS[n % 12]} is {COLOURS[n % 12 % 5]}."},
            ]
        }
        for n in range(count)
    ]


@dataclass
class Bench:
    """One job's storage and workspace; `run` is preflight and training."""

    root: Path
    model: Path
    spec: dict[str, Any]
    rows: list[dict[str, object]]
    stop: StopFlag = field(default_factory=StopFlag)
    report: Report | None = None

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def storage(self) -> Storage:
        folders = {
            "s3://bucket/model": self.model,
            "s3://bucket/data": self.root / "data",
            "s3://bucket/output": self.output,
        }
        return LocalStorage(folders, elsewhere=_no_store)

    def prepare(self) -> JobConfig:
        """Preflight; returns the config of the training pod."""
        data = self.root / "data"
        data.mkdir(parents=True)
        self.workspace.mkdir()
        self.output.mkdir()
        (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        spec = FineTuneJobSpec.model_validate(self.spec)
        config = JobConfig(namespace="default", name="job", uid="u-1", config_sha256=config_sha256(spec), spec=spec)
        checked = preflight(config, self.storage, self.workspace, Reporter("u-1"), self.stop)
        return config.model_copy(update={"attempt": 1, "resolved": checked.resolved, "dataset": checked.dataset})

    def train(self, config: JobConfig, reporter: Reporter | None = None) -> Report:
        """Training and publishing."""
        from finetune_trainer.train import train

        self.report = train(config, self.storage, self.workspace, reporter or Reporter("u-1"), self.stop)
        return self.report

    def run(self) -> Report:
        """Both pods, one after the other."""
        return self.train(self.prepare())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = _load("tiny_model").make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return path


@pytest.fixture(scope="session")
def make_bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Callable[..., Bench]:
    """A bench with a small job; keyword arguments replace blocks of the spec."""

    def make(method: str = "LoRA", rows: int = 120, **blocks: Any) -> Bench:
        spec = {
            "objective": "Instruction",
            "model": {"uri": "s3://bucket/model"},
            "tuning": {"method": method},
            "dataset": {"train": {"uri": "s3://bucket/data/train.jsonl"}, "validationSplitPercent": 20},
            "hyperparameters": {
                "maxSteps": 20,
                "perDeviceTrainBatchSize": 4,
                "gradientAccumulationSteps": 2,
                "learningRate": 0.003 if method == "Full" else 0.02,
                "maxLength": 128,
            },
            "evaluation": {"steps": 5, "prompts": [{"prompt": "What is the colour of sky 7?"}], "maxNewTokens": 8},
            "output": {"uri": "s3://bucket/output"},
        }
        return Bench(tmp_path_factory.mktemp("job"), tiny_model, spec | blocks, make_rows(rows))

    return make
