"""Real training of a tiny random Llama on the CPU, through the same preflight and train as in a pod."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Before torch: on tiny tensors and a shared machine, threads that spin while they wait cost most of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from tiny_model import make_tiny_model
from training_bench import Bench, make_spec

from finetune_api.handoff import Report
from finetune_trainer.merging import gate

MakeBench = Callable[..., Bench]


@pytest.fixture(scope="session", autouse=True)
def _fast_gate(trainer_python: str) -> Iterator[None]:
    """The gate's own process has its libraries loaded already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "sys", SimpleNamespace(executable=trainer_python))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def make_bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> MakeBench:
    def make(method: str = "LoRA", **blocks: Any) -> Bench:
        return Bench(tmp_path_factory.mktemp("job"), tiny_model, make_spec(method, **blocks))

    return make


@pytest.fixture(scope="session", params=["LoRA", "QLoRA", "Full"])
def published(request: pytest.FixtureRequest, make_bench: MakeBench) -> tuple[Bench, Report]:
    """A finished job of each method, also merged; trained once for all tests."""
    bench = make_bench(request.param, output={"uri": "s3://bucket/output", "merge": "FP32"})
    return bench, bench.run()
