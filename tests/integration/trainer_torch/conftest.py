"""Real training of a tiny random Llama on the CPU, through the same preflight and train as in a pod."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from training_bench import Bench
from training_world import MakeBench, make_bench, tiny_model

from finetune_api.handoff import Report
from finetune_trainer.merging import worker_process

__all__ = ["make_bench", "tiny_model"]


@pytest.fixture(scope="session", autouse=True)
def _fast_gate(trainer_python: str) -> Iterator[None]:
    """The processes of the merge have their libraries loaded already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_process, "sys", SimpleNamespace(executable=trainer_python))
        yield


@pytest.fixture(scope="session", params=["LoRA", "QLoRA", "Full"])
def published(request: pytest.FixtureRequest, make_bench: MakeBench) -> tuple[Bench, Report]:
    """A finished job of each method, also merged; trained once for all tests."""
    bench = make_bench(request.param, output={"uri": "s3://bucket/output", "merge": "FP32"})
    return bench, bench.run()
