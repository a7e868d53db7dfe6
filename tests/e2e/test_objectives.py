"""Every objective and every method on a tiny model: from manifest to a verified result that learnt something.

All pairs of the two are trained in tests/integration/trainer_torch; here each objective meets some method in a pod.
"""

import re
import subprocess
import sys
from typing import Any

import pytest
from rows import jsonl, judged_rows, preference_rows, prompt_rows, text_rows
from user import Bench, Job

pytestmark = pytest.mark.nightly

PAIRS = (
    ("Instruction", "LoRA"),
    ("DomainAdaptation", "Full"),
    ("DPO", "QLoRA"),
    ("DPO", "Full"),
    ("KTO", "LoRA"),
    ("RewardModel", "QLoRA"),
    ("RLHF", "QLoRA"),
    ("RLHF", "LoRA"),
)
PREFERENCES = [pair for pair in PAIRS if pair[0] in {"DPO", "KTO", "RewardModel"}]
POLICIES = [pair for pair in PAIRS if pair[0] == "RLHF"]
LEARN = {"maxSteps": 16, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}
RATES = {"QLoRA": 1e-2, "LoRA": 1e-2, "Full": 2e-3}
REWARD = {
    "rewards": [{"type": "Regex", "pattern": "[aeiou]"}],
    "maxCompletionLength": 4,
    "numGenerations": 4,
    "temperature": 0.2,
    "beta": 0,
}
"""An untrained model never ends an answer, but one in three of its answers has a vowel: that it can learn to earn."""
BLOCKS: dict[str, dict[str, Any]] = {
    "Instruction": {},
    "DomainAdaptation": {"hyperparameters": {"packing": "Always"}},
    "DPO": {"dpo": {"beta": 0.1}},
    "KTO": {"kto": {"beta": 0.1}},
    "RewardModel": {},
    "RLHF": {"rlhf": REWARD, "hyperparameters": {"maxSteps": 16, "perDeviceTrainBatchSize": 32}},
}
ALGORITHMS = {"QLoRA": "GRPO", "LoRA": "RLOO"}
Results = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def results(bench: Bench) -> Results:
    """The final status of one job for each pair of objective and method."""
    rows = {
        "Instruction": bench.put("preferences-for-sft.jsonl", jsonl(preference_rows(200))),
        "DomainAdaptation": bench.put("texts.jsonl", jsonl(text_rows(200))),
        "DPO": bench.put("pairs.jsonl", jsonl(preference_rows(200))),
        "KTO": bench.put("judged.jsonl", jsonl(judged_rows(200))),
        "RewardModel": bench.put("ranked.jsonl", jsonl(preference_rows(200))),
        "RLHF": bench.put("prompts.jsonl", jsonl(prompt_rows(200))),
    }
    jobs: dict[tuple[str, str], Job] = {}
    for objective, method in PAIRS:
        name = f"{objective}-{method}".lower()
        blocks = dict(BLOCKS[objective])
        hyper = LEARN | {"learningRate": RATES[method]} | blocks.pop("hyperparameters", {})
        if "rlhf" in blocks:
            blocks["rlhf"] = blocks["rlhf"] | {"algorithm": ALGORITHMS[method]}
        jobs[objective, method] = bench.apply(
            name,
            objective=objective,
            tuning={"method": method},
            dataset={"train": {"uri": rows[objective]}, "validationSplitPercent": 10},
            hyperparameters=hyper,
            output={"uri": bench.uri(f"out/{name}")},
            **blocks,
        )
    return {key: job.wait("Complete", seconds=1500) for key, job in jobs.items()}


@pytest.mark.parametrize(("objective", "method"), [pair for pair in PAIRS if pair not in POLICIES])
def test_the_held_out_loss_falls(results: Results, objective: str, method: str) -> None:
    status = results[objective, method]
    assert status["resolved"]["method"] == method
    assert status["metrics"]["evalLoss"] < status["metrics"]["baselineEvalLoss"]


@pytest.mark.parametrize(("objective", "method"), PREFERENCES)
def test_the_model_learns_to_prefer_the_chosen_answers(results: Results, objective: str, method: str) -> None:
    assert results[objective, method]["metrics"]["rewardMargin"] > 0


@pytest.mark.parametrize("method", ["QLoRA", "Full"])
def test_dpo_of_the_base_model_starts_at_ln_2(results: Results, method: str) -> None:
    assert results["DPO", method]["metrics"]["baselineEvalLoss"] == pytest.approx(0.693, abs=0.01)


@pytest.mark.parametrize(("objective", "method"), POLICIES)
def test_a_policy_has_a_higher_reward_than_before_training(results: Results, objective: str, method: str) -> None:
    status = results[objective, method]
    assert status["resolved"]["algorithm"] == ALGORITHMS[method]
    assert status["metrics"]["evalReward"] > status["metrics"]["baselineEvalReward"]


@pytest.mark.parametrize(("objective", "method"), PAIRS)
def test_the_report_shows_the_data_and_the_result_is_verified_from_outside(
    bench: Bench, results: Results, objective: str, method: str
) -> None:
    status = results[objective, method]
    report = bench.read(status["artifacts"]["reportURI"]).decode()
    (data_format,) = status["dataset"]["rowsByFormat"]
    assert re.search(rf"^\| {data_format} +\|", report, re.MULTILINE), report
    assert str(status["dataset"]["trainRows"]) in report
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", "verify", status["artifacts"]["uri"]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_packed_texts_are_fewer_sequences_than_rows(results: Results) -> None:
    status = results["DomainAdaptation", "Full"]
    assert status["resolved"]["packing"] is True
    assert status["dataset"]["trainRows"] > 100
