"""The operator while the API server is away, slow, overloaded, or no longer tells what happens."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from gateway import Answer, Fault, Gateway, Lose, api_error
from waiting import wait_until

ROOT = Path(__file__).parents[3]


@pytest.fixture
def gateway(control_plane: Path) -> Iterator[Gateway]:
    """The operator's way to the API server."""
    cluster = yaml.safe_load(control_plane.read_text())["clusters"][0]["cluster"]
    address = urlsplit(cluster["server"])
    with Gateway(address.hostname or "", address.port or 443, control_plane.parent / "pki" / "ca.crt").serving() as one:
        yield one


@pytest.fixture
def behind(operator: Any, gateway: Gateway, tmp_path: Path) -> Any:
    """The operator, which reaches the API server through the gateway alone, and gives up on an answer soon."""
    operator.kill()
    found = yaml.safe_load(operator.access.kubeconfig.read_text())
    found["clusters"][0]["cluster"] = {"server": gateway.url}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(found))
    operator.env |= {"KUBECONFIG": str(tmp_path / "kubeconfig"), "FINETUNE_API_TIMEOUT_SECONDS": "2"}
    return operator.start()


def is_watch(path: str) -> bool:
    return "watch=true" in path


def require_undisturbed(world: Any, status: dict[str, Any]) -> None:
    """One Job per attempt, nothing counted, nothing said twice."""
    assert world.jobs() == ["one-1", "one-preflight"]
    assert (status["attempts"], status["runs"]) == (1, 1)
    assert (status.get("failures", 0), status.get("preemptions", 0)) == (0, 0)
    happened = world.events()
    assert len(happened) == len(set(happened))


OVERLOAD = {
    "too many requests": api_error(429, "TooManyRequests", ("Retry-After", "1")),
    "an error of its own": api_error(500, "InternalError"),
    "a load balancer's page": Answer(502, b"<html>Bad Gateway</html>"),
    "no server behind it": api_error(503, "ServiceUnavailable"),
}


@pytest.mark.parametrize("answer", OVERLOAD.values(), ids=OVERLOAD.keys())
def test_a_job_outlasts_errors_of_the_api_server_and_nothing_is_counted(
    world: Any, behind: Any, gateway: Gateway, wait: Any, answer: Answer
) -> None:
    """Every tenth request fails while the job gets to its training, and then, for a while, every one.

    Counted, not by chance: a run of bad luck makes the work queue wait longer than the test does.
    """
    tenth = itertools.cycle([None] * 9 + [answer])
    gateway.rule = lambda _method, _path: next(tenth)
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    gateway.rule = lambda _method, _path: answer
    world.end(trainer, 0, world.published())
    before = gateway.faults
    wait(lambda: gateway.faults >= before + 3, "more requests that fail")
    assert world.status()["phase"] == "Training"
    gateway.rule = lambda _method, _path: None
    require_undisturbed(world, world.wait_phase("Succeeded"))


def test_what_was_done_without_an_answer_is_not_done_twice(world: Any, behind: Any, gateway: Gateway) -> None:
    """The first answer to every kind of write is lost: the API server has done what was asked, and nobody knows."""
    lost: list[tuple[str, str]] = []

    def lose(method: str, path: str) -> Fault:
        if method == "GET" or (method, path) in lost:
            return None
        lost.append((method, path))
        return Lose()

    gateway.rule = lose
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.end(trainer, 0, world.published())
    require_undisturbed(world, world.wait_phase("Succeeded"))
    assert {method for method, _ in lost} >= {"POST", "PATCH"}


def test_a_slow_api_server_only_delays_jobs(world: Any, behind: Any, gateway: Gateway) -> None:
    gateway.delay = 0.5
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.end(trainer, 0, world.published())
    require_undisturbed(world, world.wait_phase("Succeeded"))


def test_the_operator_waits_for_an_unavailable_api_server(world: Any, behind: Any, gateway: Gateway) -> None:
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    gateway.leave()
    world.end(trainer, 0, world.published())
    left, failed = time.monotonic(), behind.log.read_text().count("Request attempt")
    wait_until(lambda: behind.log.read_text().count("Request attempt") >= failed + 30, behind.log.read_text)
    assert time.monotonic() - left > 2, "the watches connect again without a pause"
    gateway.come_back()
    require_undisturbed(world, world.wait_phase("Succeeded"))


def test_watches_that_break_are_restarted(world: Any, behind: Any, gateway: Gateway, wait: Any) -> None:
    """Broken at every step, so that what happened meanwhile is learned from the next watch alone."""
    wait(lambda: len({path for _, path in gateway.asked if is_watch(path)}) >= 3, "three watches")
    world.create()
    assert gateway.cut()
    trainer = world.pass_preflight()
    gateway.cut()
    world.run(trainer)
    gateway.cut()
    world.wait_phase("Training")
    world.end(trainer, 0, world.published())
    gateway.cut()
    require_undisturbed(world, world.wait_phase("Succeeded"))


def test_changes_that_a_silent_watch_misses_are_found(world: Any, behind: Any, gateway: Gateway, wait: Any) -> None:
    """The connections stay open and nothing comes any more: only the look at every job notices."""
    behind.kill()
    gateway.asked.clear()
    behind.env["FINETUNE_RESYNC_SECONDS"] = "1"
    behind.start()
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    wait(lambda: len({path for _, path in gateway.asked if is_watch(path)}) >= 3, "three watches")
    gateway.silence()
    world.end(trainer, 0, world.published())
    require_undisturbed(world, world.wait_phase("Succeeded"))


EXPIRED = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired"}


def test_deletions_in_a_gap_of_the_watch_are_detected_and_leave_no_series(
    world: Any, behind: Any, gateway: Gateway, wait: Any
) -> None:
    """The history that a watch asks for is gone: the deletions in it are told by nobody."""
    behind.kill()
    behind.env["FINETUNE_RESYNC_SECONDS"] = "1"
    behind.start()
    world.create()
    world.create("gone")
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    wait(lambda: behind.get("/metrics") and 'name="gone"' in behind.text, "the second job's series")
    gateway.rule = lambda _method, path: api_error(503, "ServiceUnavailable") if is_watch(path) else None
    gateway.cut()
    world.delete("gone")
    world.batch.delete_namespaced_job("one-1", world.namespace, propagation_policy="Background")
    told: list[str] = []

    def expire(_method: str, path: str) -> Fault:
        resource = urlsplit(path).path
        if is_watch(path) and resource not in told:
            told.append(resource)
            return Answer(200, json.dumps({"type": "ERROR", "object": EXPIRED}).encode() + b"\n")
        return None

    gateway.rule = expire
    wait(lambda: world.status().get("failures") == 1, "a counted failure", 30)
    wait(lambda: behind.get("/metrics") and 'name="gone"' not in behind.text, "no series of what is gone")
    again = world.pod_of("one-preflight")
    world.run(again)
    world.end(again, 0, world.validated())
    wait(lambda: "one-2" in world.jobs(), "a second attempt")
    wait(lambda: len(told) >= 3, "three watches that were told so", 30)
    wait(lambda: world.status().get("attempts") == 2, "the second attempt in the status")


def test_the_operator_waits_for_an_api_server_that_is_killed_and_restarted(
    world: Any, operator: Any, control_plane: Path
) -> None:
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    restart_api_server(control_plane.parent)
    world.end(trainer, 0, world.published())
    require_undisturbed(world, world.wait_phase("Succeeded"))
    assert operator.process.poll() is None


def restart_api_server(folder: Path) -> None:
    """Kill the process by its record in the folder, and let `cluster.py` start it again."""
    tools = ROOT / "tests" / "cluster"
    end = "from daemons import stop; from layout import control_plane_only; from pathlib import Path; import sys; "
    end += "assert stop(control_plane_only(Path(sys.argv[1])), 'kube-apiserver', 0)"
    subprocess.run([sys.executable, "-c", end, str(folder)], check=True, cwd=tools)
    up = [sys.executable, "cluster.py", "control-plane", "up", "--dir", str(folder), "--controller-manager"]
    subprocess.run(up, check=True, cwd=tools, capture_output=True)


def test_two_operators_at_once_make_one_job_per_attempt(
    world: Any, operator: Any, access: Any, tmp_path: Path, wait: Any
) -> None:
    """A rollout may leave two of them for a moment; here for the whole life of a job that fails once."""
    (tmp_path / "other").mkdir()
    other = type(operator)(access, world.namespace, tmp_path / "other", operator.python).start()
    try:
        world.create()
        trainer = world.pass_preflight()
        world.run(trainer)
        world.wait_phase("Training")
        world.end(trainer, 0)
        wait(lambda: "one-2" in world.jobs(), "a second attempt", 40)
        second = world.pod_of("one-2")
        world.run(second)
        world.end(second, 0, world.published())
        status = world.wait_phase("Succeeded")
        assert world.jobs() == ["one-1", "one-2", "one-preflight"]
        assert (status["attempts"], status["runs"], status["failures"]) == (2, 2, 1)
        happened = world.events()
        assert len(happened) == len(set(happened))
    finally:
        other.kill()


def test_an_operator_that_is_terminated_in_mid_work_ends_in_order(world: Any, operator: Any, wait: Any) -> None:
    """Also while a worker waits for the next look at a job, which is when kopf's own end used to look like a crash."""
    for name in ("one", "two"):
        world.create(name, startDeadlineSeconds=600)
        world.cannot_schedule(world.pod_of(f"{name}-preflight"), "0/4 nodes are available: 4 Insufficient cpu.")
        world.wait_condition("Running", "Unschedulable", name)
    assert operator.stop() == 0
    assert "Traceback" not in operator.log.read_text()


def test_watches_that_are_refused_for_a_while_are_restarted(
    world: Any, behind: Any, gateway: Gateway, wait: Any
) -> None:
    """The token was renewed a moment too late, or the API server could not judge it."""
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    gateway.rule = lambda _method, path: api_error(401, "Unauthorized") if is_watch(path) else None
    gateway.cut()
    wait(lambda: gateway.faults >= 6, "each watch to be refused twice", 60)
    gateway.rule = lambda _method, _path: None
    world.end(trainer, 0, world.published())
    require_undisturbed(world, world.wait_phase("Succeeded"))
