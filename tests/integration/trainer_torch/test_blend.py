"""Three sources in three formats, checked by preflight and trained: the tokens that reach the loss are counted."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from training_bench import HYPERPARAMETERS, Bench
from training_world import MakeBench
from transformers import AutoTokenizer

from finetune_api.handoff import Artifact, Outcome
from finetune_trainer.tokenization.samples import UNTRAINED
from finetune_trainer.training.methods.sft import RowTrainer

Row = dict[str, Any]
WEIGHTS = {"sky": 5, "sea": 3, "leaf": 2}
"""Each source asks for one thing alone, by which its rows are recognised."""


def ask(thing: str, number: int) -> str:
    return f"What is the colour of {thing} {number}?"


def answer(number: int) -> str:
    return "The colour is " + "red " * (1 + number % 6)


def openai(number: int) -> Row:
    return {
        "messages": [
            {"role": "user", "content": ask("sky", number)},
            {"role": "assistant", "content": answer(number)},
        ]
    }


def own_columns(number: int) -> Row:
    return {"frage": ask("sea", number), "antwort": answer(number) * 3}


def sharegpt(number: int) -> Row:
    turns = [("human", ask("leaf", number)), ("gpt", answer(number))]
    return {"conversations": [{"from": who, "value": what} for who, what in turns]}


def write(folder: Path, name: str, rows: Iterable[Row]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"s3://bucket/rows/{name}.jsonl"


@pytest.fixture
def bench(make_bench: MakeBench, tmp_path: Path) -> Bench:
    uris = [
        write(tmp_path / "rows", "sky", map(openai, range(300))),
        write(tmp_path / "rows", "sea", map(own_columns, range(200))),
        write(tmp_path / "rows", "leaf", map(sharegpt, range(300))),
    ]
    sources = [{"uri": uri, "weight": weight} for uri, weight in zip(uris, WEIGHTS.values(), strict=True)]
    sources[1] |= {"columns": {"prompt": "frage", "completion": "antwort"}, "sample": "Random"}
    hyperparameters = HYPERPARAMETERS | {"packing": "Never", "numTrainEpochs": 1, "perDeviceTrainBatchSize": 16}
    hyperparameters.pop("maxSteps")
    bench = make_bench(
        dataset={"train": {"sources": sources}, "validationSplitPercent": 10}, hyperparameters=hyperparameters
    )
    bench.elsewhere["s3://bucket/rows"] = tmp_path / "rows"
    return bench


def test_three_formats_train_in_their_proportions(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    trained: Counter[str] = Counter()
    compute_loss = RowTrainer.compute_loss

    def count(trainer: RowTrainer, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        if trainer.model.training:
            for ids, labels in zip(inputs["input_ids"], inputs["labels"], strict=True):
                text = tokenizer.decode(ids)
                thing = next(thing for thing in WEIGHTS if f"of {thing} " in text)
                trained[thing] += int((labels != UNTRAINED).sum())
        return compute_loss(trainer, model, inputs, *rest, **options)

    monkeypatch.setattr(RowTrainer, "compute_loss", count)
    report = bench.run()

    assert report.outcome is Outcome.PUBLISHED
    total = sum(trained.values())
    shares = [trained[thing] / total for thing in WEIGHTS]
    assert shares == pytest.approx([weight / 10 for weight in WEIGHTS.values()], abs=0.005)
    assert report.dataset is not None
    assert [one.trained_tokens for one in report.dataset.sources or ()] == [trained[thing] for thing in WEIGHTS]
    lineage = json.loads((bench.output / Artifact.LINEAGE).read_text())
    assert [one["shareOfTrainedTokens"] for one in lineage["dataset"]["blend"]] == pytest.approx(shares, abs=1e-6)
    page = (bench.output / Artifact.REPORT).read_text()
    assert "Sources, with what one pass over the blend trains on:" in page
    assert "s3://bucket/rows/leaf.jsonl" in (bench.output / Artifact.CONFIG).read_text()
