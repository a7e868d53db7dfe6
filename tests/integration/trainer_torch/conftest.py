"""Real training of a tiny random Llama on the CPU, through the same preflight and train as in a pod."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_bench import Bench
from training_world import MakeBench, make_bench, tiny_model

from finetune_api.handoff import Report
from finetune_trainer.evaluation.run_record import RunRecord
from finetune_trainer.merging import worker_process
from finetune_trainer.report import document
from finetune_trainer.report.page import Pictures

__all__ = ["make_bench", "tiny_model"]


@pytest.fixture(scope="session", autouse=True)
def _fast_gate(trainer_python: str) -> Iterator[None]:
    """The processes of the merge have their libraries loaded already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_process, "sys", SimpleNamespace(executable=trainer_python))
        yield


@pytest.fixture(scope="session", autouse=True)
def _pictures_drawn_once() -> Iterator[None]:
    """The first report of each objective draws its pictures, a fifth of a job's time; the later ones copy them."""
    draw, drawn = document._draw, {}

    def copy(record: RunRecord, directory: Path) -> Pictures:
        key = (record.config.spec.objective, record.is_evaluation, bool(record.samples.histogram))
        if key not in drawn:
            pictures = draw(record, directory)
            drawn[key] = pictures, {name: (directory / name).read_bytes() for name in pictures}
        pictures, files = drawn[key]
        for name, content in files.items():
            (directory / name).write_bytes(content)
        return pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "_draw", copy)
        yield


@pytest.fixture(scope="session", params=["LoRA", "QLoRA", "Full"])
def published(request: pytest.FixtureRequest, make_bench: MakeBench) -> tuple[Bench, Report]:
    """A finished job of each method, also merged; trained once for all tests."""
    bench = make_bench(request.param, output={"uri": "s3://bucket/output", "merge": "FP32"})
    return bench, bench.run()
