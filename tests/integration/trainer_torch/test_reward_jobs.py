"""Whole jobs of RewardModel and RLHF, from rows to a verified result, and the chain of the two."""

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from graders import Server, grading, raw, send
from loop_bench import teach
from published_result import find_result_faults
from training_bench import HYPERPARAMETERS, THINGS, Bench, as_parent, preference_rows
from waiting import wait_until

from finetune_api.handoff import ExitCode, Report
from finetune_trainer.data.rows import Message
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.pipeline.preflight import ASKED_ROWS
from finetune_trainer.publishing.lineage import digest_folder
from finetune_trainer.rewards import service

MakeBench = Callable[..., Bench]
SHORT = HYPERPARAMETERS | {"maxSteps": 6, "learningRate": 5e-3, "lrSchedulerType": "constant", "warmupSteps": 0}
SAMPLING = {"maxCompletionLength": 10, "numGenerations": 4}
HELD_OUT, SHOWN, BATCH = 20, 3, 32
"""Answers of an evaluation of 60 rows, of the report before training, and of a step."""
RED = {"rewards": [{"type": "Regex", "pattern": r"\bred\b"}, {"type": "Length", "targetTokens": 5, "weight": 0.1}]}


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with one of four colours."""
    return teach(tiny_model, tmp_path_factory.mktemp("taught") / "model", steps=60)


def prompt_rows(count: int) -> list[dict[str, object]]:
    """Prompts only."""
    return [{"prompt": f"What is the colour of {THINGS[n % 8]}? {'?' * (n // 8)}"} for n in range(count)]


def make_reward_job(make_bench: MakeBench, method: str = "LoRA") -> Bench:
    bench = make_bench(method, objective="RewardModel", hyperparameters=SHORT, evaluation={"steps": 3})
    bench.rows = preference_rows(60)
    return bench


def make_policy_job(
    make_bench: MakeBench, model: Path, rlhf: dict[str, Any], method: str = "LoRA", **blocks: Any
) -> Bench:
    bench = make_bench(
        method,
        **{
            "objective": "RLHF",
            "rlhf": SAMPLING | rlhf,
            "hyperparameters": SHORT | {"perDeviceTrainBatchSize": 32, "gradientAccumulationSteps": 1},
            "evaluation": {"steps": 3, "prompts": [{"prompt": "What is the colour of sky?"}], "maxNewTokens": 8},
        }
        | blocks,
    )
    bench.model = model
    bench.rows = prompt_rows(60)
    return bench


def respond_for_red(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    rewards = [float("red" in one["answer"]) for one in body["answers"]]
    send(handler, json.dumps({"rewards": rewards}).encode())


def make_graded_job(make_bench: MakeBench, model: Path, server: Server) -> Bench:
    service = {"endpoint": server.endpoint, "columns": ["number"]}
    bench = make_policy_job(make_bench, model, {"rewards": [{"type": "Service", "service": service}]})
    bench.rows = [row | {"completion": "It is red.", "number": at} for at, row in enumerate(prompt_rows(60))]
    return bench


def test_a_policy_learns_from_the_rewards_of_a_server(make_bench: MakeBench, taught: Path) -> None:
    with grading() as server:
        server.respond = respond_for_red
        bench = make_graded_job(make_bench, taught, server)
        metrics = bench.run().metrics
    assert metrics
    assert (metrics.eval_reward or 0) > (metrics.baseline_eval_reward or 0) + 0.2
    first, *_, last = (one for body in server.asked for one in body["answers"])
    assert (first["prompt"][0]["role"], first["columns"]) == ("user", {"number": 0})  # preflight asks for the first row
    assert last["columns"]["number"] in range(60)
    assert "| 1. Service" in report_text(bench)


def test_a_server_that_is_missing_or_wrong_ends_preflight_before_a_gpu_is_held(
    make_bench: MakeBench, taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.0)
    with grading() as server:
        server.respond = raw(b'{"scores": [1]}')
        bench = make_graded_job(make_bench, taught, server)
        with pytest.raises(TrainerError, match="no list `rewards` for 4 answers") as failed:
            bench.prepare()
    assert failed.value.code is ExitCode.REWARD_UNAVAILABLE


def test_a_server_that_fails_in_the_middle_costs_only_the_steps_since_the_checkpoint(
    make_bench: MakeBench, taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.0)

    def fail_later(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if sum(len(one["answers"]) for one in server.asked) > ASKED_ROWS + HELD_OUT + SHOWN + 4 * BATCH:
            send(handler, b"out of memory", 500)
        else:
            respond_for_red(handler, body)

    with grading() as server:
        server.respond = fail_later
        bench = make_graded_job(make_bench, taught, server)
        config = bench.prepare()
        with pytest.raises(TrainerError, match=r"responded with 500 \(out of memory\)"):
            bench.train(config)
        server.respond = respond_for_red
        report = bench.train(config)
    assert report.resumed_from_step == 3


def test_weights_from_before_the_first_difference_in_reward_are_not_published(
    make_bench: MakeBench, taught: Path
) -> None:
    """Rewards are rare at first, and the held-out ones stay equal: the first evaluation is of the untrained model."""
    held_out: set[int] = set()

    def rare(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        number = sum(len(one["answers"]) for one in server.asked)
        if ASKED_ROWS < number <= ASKED_ROWS + HELD_OUT:  # the baseline
            held_out.update(one["columns"]["number"] for one in body["answers"])
        is_early = number <= ASKED_ROWS + HELD_OUT + SHOWN + 3 * BATCH + HELD_OUT
        rewards = [
            float("red" in one["answer"] and not is_early and one["columns"]["number"] not in held_out)
            for one in body["answers"]
        ]
        send(handler, json.dumps({"rewards": rewards}).encode())

    with grading() as server:
        server.respond = rare
        report = make_graded_job(make_bench, taught, server).run()
    assert len(held_out) == HELD_OUT
    assert report.metrics
    assert (report.metrics.best_step, report.metrics.eval_reward) == (6, 0.0)


def metrics_lines(bench: Bench, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (bench.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


def report_text(bench: Bench) -> str:
    return (bench.output / "finetune_report.md").read_text(encoding="utf-8")


@pytest.fixture(
    scope="module",
    params=["LoRA", *(pytest.param(method, marks=pytest.mark.nightly) for method in ("QLoRA", "Full"))],
)
def reward_job(request: pytest.FixtureRequest, make_bench: MakeBench) -> tuple[Bench, Report]:
    """A finished reward model of each method."""
    bench = make_reward_job(make_bench, request.param)
    return bench, bench.run()


def test_a_reward_model_learns_the_pairs_and_is_published(reward_job: tuple[Bench, Report]) -> None:
    bench, report = reward_job
    metrics = report.metrics
    assert metrics
    assert metrics.eval_loss is not None
    assert metrics.baseline_eval_loss is not None
    assert metrics.eval_loss == metrics.best_eval_loss < metrics.baseline_eval_loss
    assert (metrics.reward_accuracy or 0) > 0.9
    assert (metrics.reward_margin or 0) > 0.5
    assert find_result_faults("s3://bucket/output", bench.storage) == []
    published = {path.partition("/")[0] for path in digest_folder(bench.output)}
    assert ("merged" in published) == (bench.spec["tuning"]["method"] == "Full")
    text = report_text(bench)
    assert "**Better than the base model: held-out loss " in text
    assert any(line.startswith("| tuned model") and "| 100.0 %" in line for line in text.splitlines())
    assert "perplexity" not in text
    assert text.count("Chosen, score ") == 3
    assert "AutoModelForSequenceClassification" in text


def test_the_chain_of_a_reward_model_and_a_policy(
    make_bench: MakeBench, tiny_model: Path, reward_job: tuple[Bench, Report]
) -> None:
    bench = make_policy_job(make_bench, tiny_model, {"rewardModel": {"jobRef": {"name": "reward"}}})
    bench.spec |= {"evaluation": {"steps": 3}, "hyperparameters": bench.spec["hyperparameters"] | {"maxSteps": 3}}
    bench.elsewhere = {"s3://bucket/parent": reward_job[0].output}
    config = bench.prepare(reward_job=as_parent(*reward_job))
    report = bench.train(config)
    metrics = report.metrics
    assert metrics
    assert "Read them: a bad answer can have a high reward" in report_text(bench)
    assert None not in (metrics.reward, metrics.eval_reward, metrics.baseline_eval_reward, metrics.kl)
    assert metrics.eval_loss is None
    assert report.lineage
    assert report.lineage.reward_job
    assert report.lineage.reward_job.name == "parent"
    assert find_result_faults("s3://bucket/output", bench.storage) == []


@pytest.mark.nightly
def test_supervised_tuning_then_a_reward_model_then_a_policy_that_continues_the_first(make_bench: MakeBench) -> None:
    """Both children continue the first job's adapter, which is also the policy's reference."""
    first = make_bench("LoRA", hyperparameters=SHORT, evaluation={"steps": 3})
    parent = as_parent(first, first.run())
    continued = {"tuning": {"method": "LoRA", "initialAdapter": {"fromParent": True}}}
    chained = continued | {"lineage": {"parentRef": {"name": "sft"}}}
    second = make_reward_job(make_bench)
    second.spec |= chained
    second.elsewhere, second.parent = {"s3://bucket/parent": first.output}, parent
    reward = as_parent(second, second.run()).model_copy(update={"output_uri": "s3://bucket/reward"})
    third = make_policy_job(make_bench, first.model, {"rewardModel": {"jobRef": {"name": "reward"}}}, **chained)
    third.spec |= {"evaluation": {"steps": 3}, "hyperparameters": third.spec["hyperparameters"] | {"maxSteps": 3}}
    third.elsewhere = second.elsewhere | {"s3://bucket/reward": second.output}
    third.parent = parent
    report = third.train(third.prepare(reward_job=reward))
    assert report.lineage
    assert report.lineage.parent == parent
    assert report.lineage.reward_job == reward
    assert report.lineage.initial_adapter_sha256
    steps = metrics_lines(third, "train")
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert steps[0]["reward"] != steps[-1]["reward"]
    assert not [path for path in digest_folder(third.output) if path.startswith("adapter/ref/")]


@pytest.mark.parametrize(
    ("method", "algorithm"),
    [
        ("LoRA", "RLOO"),
        pytest.param("QLoRA", "GRPO", marks=pytest.mark.nightly),
        pytest.param("Full", "GRPO", marks=pytest.mark.nightly),
    ],
)
def test_a_policy_gets_computed_rewards_and_its_best_step_is_published(
    make_bench: MakeBench, taught: Path, method: str, algorithm: str
) -> None:
    rate = {"learningRate": 2e-3 if method == "Full" else 5e-3}
    bench = make_policy_job(make_bench, taught, RED | {"algorithm": algorithm}, method)
    bench.spec["hyperparameters"] |= rate
    report = bench.run()
    metrics = report.metrics
    assert metrics
    earned = [line["reward"] for line in metrics_lines(bench, "train")]
    assert sum(earned[-2:]) > sum(earned[:2])
    evaluations = {line["step"]: line["reward"] for line in metrics_lines(bench, "eval")}
    assert set(evaluations) == {0, 3, 6}
    best = max((3, 6), key=lambda step: evaluations[step])
    assert metrics.best_step == best
    assert metrics.baseline_eval_reward == pytest.approx(evaluations[0])
    (final,) = metrics_lines(bench, "final")
    assert final["step"] == best
    assert final["reward"] == pytest.approx(metrics.eval_reward)
    for text in (report.message, report_text(bench)):
        found = re.search(r"held-out reward [-0-9.]+ → ([-0-9.]+), ", text)
        assert found
        assert float(found[1]) == pytest.approx(final["reward"], abs=1.1e-3)  # both are rounded, to three digits
    assert find_result_faults("s3://bucket/output", bench.storage) == []


def test_a_stop_while_answers_are_written_ends_within_the_step(make_bench: MakeBench, taught: Path) -> None:
    bench = make_policy_job(make_bench, taught, RED | {"maxCompletionLength": 600})
    config = bench.prepare()
    before: list[int] = []

    def stop_in_generation() -> None:
        snapshot = bench.reporter.snapshot
        try:
            wait_until(lambda: snapshot().progress.stage == "Baseline", pause=0.01)
            before.append(snapshot().heartbeat)
            wait_until(lambda: snapshot().heartbeat >= before[0] + 5, pause=0.01)
        finally:
            bench.stop.set()

    watcher = threading.Thread(target=stop_in_generation)
    watcher.start()
    with pytest.raises(Stopped) as caught:
        bench.train(config)
    watcher.join()
    assert caught.value.code is ExitCode.PREEMPTED
    assert not (bench.output / "manifest.json").exists()


def test_a_policy_without_held_out_rows_publishes_its_last_step(make_bench: MakeBench, taught: Path) -> None:
    bench = make_policy_job(make_bench, taught, RED, dataset={"train": {"uri": "s3://bucket/data/train.jsonl"}})
    bench.spec["hyperparameters"] |= {"maxSteps": 2}
    report = bench.run()
    assert report.metrics
    assert report.metrics.eval_reward is None
    assert "no rows were held out" in report.message


def test_a_prompt_of_the_rows_is_used_without_its_answer(make_bench: MakeBench, taught: Path) -> None:
    """Any row has a prompt: chats, pairs and judged answers."""
    bench = make_policy_job(make_bench, taught, RED)
    ask = [Message(role="user", content="What is the colour of sky?")]
    bench.rows = [{"messages": [*ask, {"role": "assistant", "content": f"It is {n}."}]} for n in range(45)] + [
        {"prompt": f"What is the colour of sea {n}?", "chosen": "It is red.", "rejected": "No."} for n in range(45)
    ]
    bench.spec["hyperparameters"] |= {"maxSteps": 1}
    config = bench.prepare()
    assert config.dataset
    assert config.dataset.train_rows
    bench.train(config)
    assert "It is 7." not in report_text(bench)
