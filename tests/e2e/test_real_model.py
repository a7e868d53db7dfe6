"""A real model, SmolLM2-135M-Instruct, learns what it is taught: answers from ShareGPT rows, taste from pairs, and
sums from rewards."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_cpp_answer import ask_llama_cpp
from rows import jsonl
from user import BUCKET, Bench

from finetune_trainer.data.checks.output import read_accepted
from finetune_trainer.tokenization.labeler import Labeler

pytestmark = pytest.mark.nightly

DATA = Path(__file__).resolve().parents[1] / "demo" / "data.py"
MODEL = f"s3://{BUCKET}/smollm2"
CHATTY = "Oh, what a great question! Well, let me think about it for a moment. "
HYPER = {"maxSteps": 10, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}
SIZE = {"gpusPerNode": 1, "requests": {"cpu": "600m", "memory": "2Gi"}}
"""Both jobs at once on two cores."""
QUESTION = "What does the field `replicas` of a Kubernetes Deployment do?"


@pytest.fixture(scope="module")
def local(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model and rows on this machine; the model also in the bucket."""
    directory = tmp_path_factory.mktemp("smollm2")
    subprocess.run([sys.executable, str(DATA), str(directory)], check=True, capture_output=True)
    for path in sorted((directory / "model").iterdir()):
        bench.s3.upload_file(str(path), BUCKET, f"smollm2/{path.name}")
    return directory


@pytest.fixture(scope="module")
def results(bench: Bench, local: Path) -> dict[str, dict[str, Any]]:
    """Both jobs' final status."""
    questions = [row for row in map(_pair, (local / "kubernetes-fields.jsonl").read_text("utf-8").splitlines()) if row]
    chats = [{"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]}
             for ask, answer in questions[:140]]  # fmt: skip
    pairs = [{"prompt": ask, "chosen": answer, "rejected": CHATTY + answer} for ask, answer in questions[:60]]
    common: dict[str, Any] = {"model": {"uri": MODEL}, "resources": SIZE}
    evaluation = {"steps": 10, "prompts": [{"prompt": QUESTION}], "maxNewTokens": 32}
    jobs = {
        "real-chat": bench.apply(
            "real-chat",
            objective="Chat",
            tuning={"method": "LoRA"},
            dataset=_dataset(bench.put("chats.jsonl", jsonl(chats)), "ShareGPT"),
            hyperparameters=HYPER | {"learningRate": 3e-3},
            evaluation=evaluation,
            output={"uri": bench.uri("out/real-chat"), "merge": "BF16", "gguf": ["F16", "Q8_0"]},
            **common,
        ),
        "real-dpo": bench.apply(
            "real-dpo",
            objective="DPO",
            tuning={"method": "LoRA"},
            dataset=_dataset(bench.put("taste.jsonl", jsonl(pairs)), "Preference"),
            hyperparameters=HYPER | {"learningRate": 3e-4},
            evaluation=evaluation,
            **common,
        ),
    }
    return {name: job.wait("Complete", seconds=1500) for name, job in jobs.items()}


def _pair(line: str) -> tuple[str, str] | None:
    """Question and answer of one of the demo's Alpaca rows; the other rows are left out."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not row.get("instruction") or not row.get("output"):
        return None
    return row["instruction"], row["output"]


def _dataset(uri: str, data_format: str) -> dict[str, Any]:
    return {"train": {"uri": uri}, "format": data_format, "validationSplitPercent": 10}


def test_chat_on_sharegpt_rows_halves_the_surprise(results: dict[str, dict[str, Any]]) -> None:
    status = results["real-chat"]
    assert set(status["dataset"]["rowsByFormat"]) == {"ShareGPT"}
    assert status["metrics"]["evalLoss"] < 0.8 * status["metrics"]["baselineEvalLoss"]


def test_dpo_starts_even_and_ends_preferring_what_was_chosen(results: dict[str, dict[str, Any]]) -> None:
    metrics = results["real-dpo"]["metrics"]
    assert metrics["baselineEvalLoss"] == pytest.approx(0.693, abs=0.01)
    assert metrics["evalLoss"] < 0.5
    assert metrics["rewardMargin"] > 0.5
    assert metrics["rewardAccuracy"] > 0.9


def test_sums_are_right_more_often_after_rewards_for_right_answers(bench: Bench, local: Path) -> None:
    digits = range(1, 10)
    sums = [{"prompt": f"What is {one} + {other}?", "answer": str(one + other)} for one in digits for other in digits]
    job = bench.apply(
        "real-sums",
        objective="RLHF",
        model={"uri": MODEL},
        resources=SIZE,
        tuning={"method": "LoRA"},
        dataset={"train": {"uri": bench.put("sums.jsonl", jsonl(sums))}, "validationSplitPercent": 30},
        rlhf={
            "numGenerations": 8,
            "maxCompletionLength": 12,
            "rewards": [{"type": "Answer", "answer": {"match": "Numeric", "extract": "LastNumber"}}],
        },
        hyperparameters={
            "maxSteps": 12, "perDeviceTrainBatchSize": 16, "gradientAccumulationSteps": 1, "learningRate": 5e-4,
        },
        evaluation={"steps": 12},
    )  # fmt: skip
    metrics = job.wait("Complete", seconds=1500)["metrics"]
    assert metrics["evalReward"] > metrics["baselineEvalReward"] + 0.3
    report = bench.read(bench.uri("out/real-sums/finetune_report.md")).decode()
    assert "| 1. Answer" in report


def test_the_published_adapter_likes_the_chosen_answers_of_unseen_questions_better_than_the_base_does(
    bench: Bench, local: Path, results: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = bench.download(results["real-dpo"]["artifacts"]["adapterURI"], tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(str(local / "model"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    rows = tmp_path / "validation.jsonl"
    rows.write_bytes(bench.read(f"{results['real-dpo']['artifacts']['uri'].rstrip('/')}/dataset/validation.jsonl"))
    labeler = Labeler(adapter)
    pairs = [labeler.encode(row, "DPO", 128) for row in read_accepted(rows)][:8]
    better = 0
    for encoded in pairs:
        assert isinstance(encoded, list)
        tuned = _preference(model, encoded[0])
        with model.disable_adapter():
            better += tuned > _preference(model, encoded[0])
    assert better == len(pairs)


def test_its_gguf_files_answer_in_llama_cpp_as_the_report_states(
    bench: Bench, results: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    status = results["real-chat"]
    assert status["evaluation"]["ggufGate"] == "Passed"
    folder = bench.download(status["artifacts"]["ggufURI"], tmp_path / "gguf")
    checked = json.loads(bench.read(bench.uri("out/real-chat/validation.json")))["gguf"]["files"]
    assert [one["name"] for one in checked] == ["F16", "Q8_0"]
    for one in checked:
        assert one["loss"] == pytest.approx(one["reference_loss"], rel=0.02)
        assert ask_llama_cpp(folder / f"model-{one['name']}.gguf", QUESTION, 32) == one["answers"][0]
    report = bench.read(status["artifacts"]["reportURI"]).decode()
    assert f"on {checked[0]['tokens']} held-out tokens" in report


def _preference(model: Any, pair: Any) -> float:
    """How much likelier the chosen answer is than the rejected one, in nats."""
    return _likelihood(model, pair.prompt_ids, pair.chosen_ids) - _likelihood(model, pair.prompt_ids, pair.rejected_ids)


def _likelihood(model: Any, prompt: list[int], answer: list[int]) -> float:
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        scores = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    return float(scores.gather(1, ids[0, len(prompt) :, None]).sum())
