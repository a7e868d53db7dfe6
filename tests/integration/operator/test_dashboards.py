"""Every query of every dashboard and alert against a real Prometheus, which scrapes the real operator and a real
trainer. `test_pictures.py` takes the pictures of the documentation."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dashboards
import pytest
import yaml
from free_ports import free_port
from http_servers import answering, forward_to
from prometheus import Prometheus, running
from prometheus_client.parser import text_string_to_metric_families
from tiny_model import make_tiny_model
from waiting import wait_until

from finetune_api.handoff import ENV_POD_UID

pytestmark = pytest.mark.nightly

FIXTURES = Path(__file__).parents[2] / "fixtures"
ONLY_ON_A_GPU = {"finetune_trainer_gpu_memory_peak_bytes"}
"""What no trainer on a CPU tells."""
DCGM = """DCGM_FI_DEV_GPU_UTIL{{namespace="{namespace}",pod="{pod}",gpu="0"}} 87
DCGM_FI_DEV_FB_USED{{namespace="{namespace}",pod="{pod}",gpu="0"}} 20480
DCGM_FI_DEV_POWER_USAGE{{namespace="{namespace}",pod="{pod}",gpu="0"}} 310
"""
"""No GPU is here: these lines have the names and labels of DCGM exporter, for the join with the trainers' pods."""
TRAINING = {
    "objective": "Chat",
    "model": {"uri": "s3://bucket/model"},
    "tuning": {"method": "LoRA", "lora": {"rank": 4}},
    "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}, "validationSplitPercent": 10},
    "hyperparameters": {
        "learningRate": 1e-3, "maxLength": 64, "maxSteps": 20000, "perDeviceTrainBatchSize": 4,
        "gradientAccumulationSteps": 1,
    },
    "evaluation": {"steps": 10},
    "checkpoint": {"steps": 10},
    "output": {"uri": "s3://bucket/out"},
}  # fmt: skip
REINFORCED = {
    "progress": {"percent": 61, "step": 61, "totalSteps": 100, "stage": "Training"},
    "metrics": {"reward": 0.71, "evalReward": 0.66, "baselineEvalReward": 0.41, "kl": 0.02, "rewardAccuracy": 0.81},
}


BETTER = {
    "verdict": "Better", "metric": "Loss", "before": 2.5, "after": 1.2, "difference": -1.3, "differenceLow": -1.5,
    "differenceHigh": -1.1, "rows": 40, "change": "-52 %",
    "answers": {"rows": 40, "beforePercent": 12.5, "afterPercent": 77.5},
    "ability": {"questions": 100, "beforePercent": 61, "afterPercent": 58},
}  # fmt: skip
WORSE = {
    "verdict": "Worse", "metric": "Loss", "before": 1.2, "after": 1.5, "difference": 0.3, "differenceLow": 0.1,
    "differenceHigh": 0.5, "rows": 40, "change": "+25 %",
}  # fmt: skip


def test_every_query_returns_data_and_becomes_a_picture(
    world: Any, operator: Any, wait: Any, trainer_at: Any, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(training_of(world, tmp_path))
        pod = live(world, port, stack)
        others(world, trainer_at, stack)
        server = stack.enter_context(running(config(operator, port, pod, stack), tmp_path))
        wait(lambda: [one["health"] for one in server.targets()] == ["up"] * 3, lambda: str(server.targets()), 120)
        require_data(wait, server, world)
        require_rules(wait, server)
        require_well_formed(operator.port)
        require_well_formed(port)
        draw_all(server, world, tmp_path)
        require_gpu_time_over_a_restart(wait, server, world, operator)


@contextmanager
def training_of(world: Any, folder: Path) -> Iterator[int]:
    """A job whose trainer is real; its port."""
    world.create("support-bot", **{name: value for name, value in TRAINING.items() if name != "model"})
    job, pod = world.get("support-bot"), world.pass_preflight("support-bot")
    world.run(pod)
    world.end(pod, 143, disruption="EvictionByEvictionAPI", ran=420)
    wait_until(lambda: world.status("support-bot").get("preemptions") == 1)
    pod = world.pod_of("support-bot-1")
    make_tiny_model(folder / "model")
    rows = [{"instruction": f"Is {number} even?", "output": "no" if number % 2 else "yes"} for number in range(300)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n")
    meta = {"namespace": world.namespace, "name": "support-bot"}
    kind = {"apiVersion": job["apiVersion"], "kind": job["kind"]}
    (folder / "job.yaml").write_text(yaml.safe_dump(kind | {"metadata": meta, "spec": TRAINING}))
    port = free_port()
    with (folder / "trainer.log").open("wb") as log:
        command = [sys.executable, str(FIXTURES / "served_training.py"), str(folder), str(port), job["metadata"]["uid"]]
        environment = os.environ | {ENV_POD_UID: pod.metadata.uid, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def live(world: Any, port: int, stack: ExitStack) -> Any:
    """The operator reaches the real trainer at the address of its pod, which is returned."""
    stack.enter_context(answering("127.0.0.7", 8080, forward_to(port)))
    pod = world.pod_of("support-bot-1")
    world.run(pod, ip="127.0.0.7")
    return pod


def others(world: Any, trainer_at: Any, stack: ExitStack) -> None:
    """Jobs in other states: the test plays the kubelet, and the trainers' answers."""
    world.create("code-review")
    pod = world.pass_preflight("code-review")
    report = {"jobUID": world.get("code-review")["metadata"]["uid"], "podUID": pod.metadata.uid, "heartbeat": 5}
    stack.enter_context(trainer_at("127.0.0.8", json.dumps(report | REINFORCED).encode()))
    world.run(pod, ip="127.0.0.8")

    world.create("too-large", resources={"gpusPerNode": 8})
    world.cannot_schedule(world.pass_preflight("too-large"), "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    world.create("waiting", lineage={"parentRef": {"name": "support-bot"}})
    world.create("refused", trainer={"image": "registry.example/another:1"})
    world.create("in-queue", scheduling={"queueName": "team"})
    world.wait_phase("Queued", "in-queue")

    world.create("restarted", backoffLimit=6)
    pod = world.pass_preflight("restarted")
    world.run(pod)
    world.end(pod, 143, disruption="EvictionByEvictionAPI", ran=300)
    wait_until(lambda: world.status("restarted").get("preemptions") == 1)
    pod = world.pod_of("restarted-1")
    world.run(pod)
    world.end(pod, 1, ran=60)

    for name, code in (("unstable", 76), ("no-rights", 77)):
        world.create(name)
        pod = world.pass_preflight(name)
        world.run(pod)
        world.end(pod, code)
    for name, evaluation in (("summaries", BETTER), ("regressed", WORSE)):
        world.create(name)
        pod = world.pass_preflight(name)
        world.run(pod)
        world.end(pod, 0, world.published(name, evaluation=evaluation), ran=900)
        world.wait_phase("Succeeded", name)
    world.create("gated", evaluation={"gate": {"mustImprove": True}})
    pod = world.pass_preflight("gated")
    world.run(pod)
    artifacts = {"uri": "s3://bucket/jobs/gated", "manifestSHA256": "ab" * 32}
    not_met = WORSE | {"gate": "NotMet", "gateMessage": "the loss rose from 1.2 to 1.5"}
    world.end(pod, 78, world.report("GateNotMet", "gated", artifacts=artifacts, evaluation=not_met), ran=600)
    world.wait_phase("Failed", "gated")
    world.wait_phase("Failed", "no-rights")


def config(operator: Any, port: int, pod: Any, stack: ExitStack) -> str:
    """The scrape jobs of the documentation, for the operator, the trainer in its pod, and DCGM's lines."""
    trainer = {
        "metadata": {
            "namespace": pod.metadata.namespace,
            "name": pod.metadata.name,
            "labels": pod.metadata.labels,
            "annotations": pod.metadata.annotations,
        }
    }
    labels = {"app.kubernetes.io/name": "finetune-operator", "app.kubernetes.io/component": "operator"}
    itself = {"metadata": {"namespace": "system", "name": "operator-0", "labels": labels}}
    lines = DCGM.format(namespace=pod.metadata.namespace, pod=pod.metadata.name).encode()
    dcgm = stack.enter_context(answering("127.0.0.1", 0, lambda _: lines))
    found = dashboards.discovered
    jobs = [
        dashboards.scrape_job("finetune-operator", f"127.0.0.1:{operator.port}", found(itself, "metrics")),
        dashboards.scrape_job("finetune-trainers", f"127.0.0.1:{port}", found(trainer, "progress")),
        {"job_name": "dcgm", "honor_labels": True, "static_configs": [{"targets": [f"127.0.0.1:{dcgm}"]}]},
    ]
    pace = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    return yaml.safe_dump({"global": pace, "rule_files": [str(dashboards.ALERTS)], "scrape_configs": jobs})


def values(world: Any, name: str) -> dict[str, str]:
    """Grafana's variables; the longer name comes first."""
    return {
        "__rate_interval": "15s", "__range": "10m", "namespace": world.namespace, "name": name, "job": ".+",
        "instance": ".+",
    }  # fmt: skip


JOBS = ("support-bot", "code-review", "restarted", "summaries", "gated", "in-queue")


def require_data(wait: Any, server: Prometheus, world: Any) -> None:
    """Each query returns a number, on the dashboard of a job for at least one of the jobs."""
    left = {
        (name, panel["title"], expression)
        for name in dashboards.NAMES
        for panel, expression in dashboards.queries(dashboards.load(name))
        if not any(metric in expression for metric in ONLY_ON_A_GPU)
    }

    def all_answer() -> bool:
        for one in list(left):
            if any(is_data(server.query(dashboards.filled(one[2], values(world, name)))) for name in JOBS):
                left.discard(one)
        return not left

    wait(all_answer, lambda: f"no data: {sorted(left)}", 300)


def is_data(samples: list[dict[str, Any]]) -> bool:
    return any(sample["value"][1] not in {"NaN", "+Inf", "-Inf"} for sample in samples)


def require_rules(wait: Any, server: Prometheus) -> None:
    """What the alerts look at is there, they are evaluated, and those fire for which there is a reason here."""
    for rule in dashboards.rules():
        for selector in dashboards.selectors(rule["expr"]):
            if selector.startswith("finetune_release_"):  # this operator serves no releases; test_alerts.py has one
                continue
            assert server.query(selector), f"{rule['alert']}: no data of {selector}"
    firing = {
        ("FineTuneLossNotFinite", "unstable"), ("FineTuneStorageErrors", "no-rights"),
        ("FineTuneJobNotImproved", "gated"),
        *(("FineTuneJobFailed", name) for name in ("unstable", "no-rights", "gated")),
    }  # fmt: skip

    def found() -> set[tuple[str, str]]:
        alerts = [alert for rule in server.rules() for alert in rule["alerts"] if alert["state"] == "firing"]
        assert not [alert for alert in alerts if "<no value>" in str(alert["annotations"])]
        return {(alert["labels"]["alertname"], alert["labels"].get("name", "")) for alert in alerts}

    wait(lambda: found() == firing, lambda: str(found()), 120)
    assert [rule["name"] for rule in server.rules() if rule["health"] != "ok" or rule.get("lastError")] == []


LABELS = {
    "namespace", "name", "phase", "reason", "objective", "method", "code", "format", "result", "verb", "resource",
    "version", "le", "verdict", "gate", "metric", "generation", "implementation", "major", "minor", "patchlevel",
}  # fmt: skip
"""All labels there are: none of a step, an epoch, a run or a figure."""


def require_well_formed(port: int) -> None:
    """What promtool says of names, units and help, and the rules of this project."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    for family in text_string_to_metric_families(text.decode()):
        assert family.name.startswith(("finetune_", "process_", "python_")), family.name
        assert family.documentation
        assert not family.name.endswith(("_age", "_created")), f"{family.name}: a timestamp, not an age"
        for sample in family.samples:
            assert sample.labels.keys() <= LABELS, sample
            assert family.type != "counter" or sample.name.endswith("_total")


def draw_all(server: Prometheus, world: Any, folder: Path) -> None:
    """Draw each dashboard."""
    from dashboard_pictures import Source, draw  # here: every process of the tests collects this file

    source = Source(server, values(world, "support-bot"))
    for name in dashboards.NAMES:
        path = folder / f"dashboard-{name}.png"
        draw(name, source, path)
        assert 20_000 < path.stat().st_size < 150_000


def require_gpu_time_over_a_restart(wait: Any, server: Prometheus, world: Any, operator: Any) -> None:
    """The GPU time of the namespace grows with the two trainers that run, keeps that of deleted jobs, and begins again
    at 0 with the operator."""
    series = f'finetune_namespace_gpu_seconds_total{{namespace="{world.namespace}"}}'

    def value() -> float:
        samples = server.query(series)
        return float(samples[0]["value"][1]) if samples else 0.0

    before = value()
    world.delete("summaries")
    wait(
        lambda: "summaries" not in str(server.query("finetune_job_info")), "the series of the deleted job are gone", 60
    )
    assert value() >= before > 0
    last, killed = value(), time.time()
    operator.kill()
    operator.start()
    running = len({"support-bot", "code-review"})
    wait(lambda: 0 < value() < last, lambda: f"a counter that began again: {last}, {value()}", 60)
    assert value() <= running * (time.time() - killed)
    wait(lambda: int(server.query(f"resets({series}[5m])")[0]["value"][1]) == 1, "one restart", 60)
