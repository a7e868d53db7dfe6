"""What a real training leaves for those who ask later: where it is from, and that it can be repeated."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from thin_slice import thin_slice
from training_bench import HYPERPARAMETERS, Bench

from finetune_trainer.commands.verify import verify_result
from finetune_trainer.storage.protocol import sha256_file

MakeBench = Callable[..., Bench]
SHORT = {"hyperparameters": HYPERPARAMETERS | {"maxSteps": 6}}
OF_THE_MOMENT = ("startedTime", "completedTime")
OF_THE_MACHINE = ("tokensPerSecond", "gpuMemoryPeakBytes")


def lineage_of(bench: Bench) -> dict[str, Any]:
    """The lineage without what no two runs share: times, speed and memory."""
    lineage: dict[str, Any] = json.loads((bench.output / "lineage.json").read_text())
    for name in OF_THE_MOMENT:
        del lineage[name]
    for name in OF_THE_MACHINE:
        lineage["metrics"].pop(name, None)
    return lineage


@pytest.mark.parametrize("method", thin_slice(["LoRA", "QLoRA"], "LoRA"))
def test_the_same_manifest_trained_twice_gives_the_same_adapter_and_lineage(make_bench: MakeBench, method: str) -> None:
    first, second = make_bench(method, **SHORT), make_bench(method, **SHORT)
    first.run()
    second.run()
    digests = [sha256_file(one.output / "adapter" / "adapter_model.safetensors") for one in (first, second)]
    assert digests[0] == digests[1]
    assert lineage_of(first) == lineage_of(second)
    assert lineage_of(first)["chosenStep"] in range(1, 7)


@pytest.mark.parametrize("method", thin_slice(["LoRA", "Full"], "Full"))
def test_what_a_real_training_publishes_is_proven_by_verify(make_bench: MakeBench, method: str) -> None:
    bench = make_bench(method, **SHORT)
    report = bench.run()
    verdict = verify_result("s3://bucket/output", bench.storage)
    assert verdict.faults == []
    assert [link.uri for link in verdict.chain] == ["s3://bucket/model"]
    assert report.artifacts
    assert report.artifacts.lineage_sha256 == sha256_file(bench.output / "lineage.json")
    assert len((bench.output / "openlineage.jsonl").read_text().splitlines()) == 2
