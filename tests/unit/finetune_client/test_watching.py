"""What a watch yields and when it ends, with the API server's answers in memory."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes
import pytest

from finetune_client import FineTuneError, FineTuneJob, JobDeleted, JobFailed, NotFound, Unreachable, WaitTimeout
from finetune_client.cluster.client import Cluster
from finetune_client.cluster.connection import RETRIES, Connection, Expired, Stop
from finetune_client.cluster.job import Job
from finetune_client.results import require_result
from finetune_client.watching import Watch

Make = Callable[..., Job]
Step = dict[str, Any] | Exception


class Answers:
    """A connection whose answers are given: jobs as they are read, and events of each watch."""

    namespace = "team-a"

    def __init__(self, reads: list[Step], watches: list[list[Step]]) -> None:
        self.reads, self.watches = reads, watches
        self.queries: list[dict[str, Any]] = []
        self.calls: list[str] = []

    def call(self, verb: str, *_: Any, **__: Any) -> dict[str, Any]:
        self.calls.append(verb)
        found = self.reads.pop(0) if len(self.reads) > 1 else self.reads[0]
        if isinstance(found, Exception):
            raise found
        return found

    def stream(self, _: str, query: dict[str, Any], stop: Stop, silence: float) -> Iterator[bytes]:
        assert silence > query["timeoutSeconds"]
        self.queries.append(query)
        for event in self.watches.pop(0) if self.watches else []:
            if isinstance(event, Exception):
                raise event
            line = json.dumps(event).encode() + b"\n"
            yield line[:20]
            yield line[20:]


def at(job: Job, version: int, **metadata: Any) -> dict[str, Any]:
    return {**job.raw, "metadata": {**job.raw["metadata"], "resourceVersion": str(version), **metadata}}


def changed(job: Job, version: int) -> dict[str, Any]:
    return {"type": "MODIFIED", "object": at(job, version)}


def ended(job: Make, kind: str = "Complete", **status: Any) -> Job:
    condition = {
        "type": kind,
        "status": "True",
        "reason": "Succeeded" if kind == "Complete" else "Diverged",
        "message": "The loss is not a number: lower hyperparameters.learningRate",
        "lastTransitionTime": "2026-03-01T12:25:00Z",
    }
    phase = "Succeeded" if kind == "Complete" else "Failed"
    return job(phase=phase, reason=condition["reason"], conditions=[condition], **status)


def watched(first: Job, answers: Answers, timeout: float | None = None) -> Watch:
    return Watch(Cluster(answers, "team-a"), first, timeout, retry_seconds=0)  # type: ignore[arg-type]


GONE = {"type": "ERROR", "object": {"kind": "Status", "code": 410}}


def test_each_change_is_yielded_once_until_the_job_has_ended(job: Make) -> None:
    done = ended(job)
    answers = Answers(
        [at(job(), 1)], [[changed(job(), 1), changed(job(progress={"percent": 50}), 2), changed(done, 3)]]
    )
    seen = list(watched(job(), answers))
    assert [(one.phase, one.percent, one.has_ended) for one in seen] == [
        ("Training", 42, False),
        ("Training", 50, False),
        ("Succeeded", 100, True),
    ]
    assert answers.queries[0]["fieldSelector"] == "metadata.name=one"
    assert answers.queries[0]["resourceVersion"] == "1"


def test_values_that_are_not_known_yet_are_none_and_the_line_is_that_of_the_plugin(job: Make) -> None:
    (new,) = watched(job(), Answers([at(ended(job, progress=None, metrics=None), 1)], []))
    assert (new.step, new.train_loss, new.remaining_seconds, new.stage) == (None, None, None, "")
    seen = next(iter(watched(job(), Answers([at(job(), 1)], []))))
    assert (seen.step, seen.total_steps, seen.train_loss, seen.eval_loss) == (42, 100, 1.4231, 1.5)
    assert (seen.stage, seen.remaining_seconds, seen.best_eval_loss) == ("Training", 3400, 1.498)
    assert str(seen).startswith("Training 42% step 42/100 loss 1.4231 eval 1.5 left 56m40s")


@pytest.mark.parametrize(
    "end",
    [[], [GONE], [Expired("too old")], [Unreachable("reset")]],
    ids=["ends", "expired", "refused", "reset"],
)
def test_a_watch_that_ends_expires_or_breaks_is_opened_again_after_the_job_was_read(job: Make, end: list[Step]) -> None:
    answers = Answers([at(job(), 1), Unreachable("restarting"), at(job(), 7)], [end, [changed(ended(job), 8)]])
    assert [one.phase for one in watched(job(), answers)] == ["Training", "Training", "Succeeded"]
    assert [one["resourceVersion"] for one in answers.queries] == ["1", "7"]


def test_an_api_server_that_stays_away_is_an_error(job: Make) -> None:
    answers = Answers([Unreachable("away")] * (RETRIES + 1) + [at(ended(job), 1)], [])
    with pytest.raises(Unreachable):
        list(watched(job(), answers))
    assert len(answers.reads) == 1


@pytest.mark.parametrize("how", ["event", "missing", "replaced"])
def test_a_deleted_job_is_an_error(job: Make, how: str) -> None:
    reads: dict[str, list[Step]] = {
        "event": [at(job(), 1)],
        "missing": [at(job(), 1), NotFound("no such job"), {"items": [], "metadata": {}}],
        "replaced": [at(job(), 1), at(job(), 2, uid="another")],
    }
    watches: list[list[Step]] = [[{"type": "DELETED", "object": at(job(), 2)}]] if how == "event" else [[]]
    with pytest.raises(JobDeleted, match="one was deleted while it was watched"):
        list(watched(job(), Answers(reads[how], watches)))


def test_the_callers_time_limits_the_wait_and_each_watch(job: Make) -> None:
    answers = Answers([at(job(), 1)], [])
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.2 seconds; it runs on") as raised:
        list(watched(job(), answers, timeout=0.2))
    assert isinstance(raised.value, WaitTimeout)
    assert {one["timeoutSeconds"] for one in answers.queries} == {1}


@pytest.mark.parametrize("reads", ["never", "at first"])
@pytest.mark.parametrize("how", ["for", "async for"])
def test_the_callers_time_limits_the_wait_for_an_api_server_that_is_away(job: Make, how: str, reads: str) -> None:
    async def read(watch: Watch) -> None:
        async for _ in watch:
            pass

    found: list[Step] = [] if reads == "never" else [at(job(), 1)]
    answers = Answers([*found, Unreachable("away")], [[Unreachable("reset")]])
    watch = Watch(Cluster(answers, "team-a"), job(), timeout=1)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(WaitTimeout, match="one was not seen to end within 1 seconds: away"):
        asyncio.run(read(watch)) if how == "async for" else list(watch)
    assert 1 <= time.monotonic() - began < 10


def test_a_request_of_a_limited_wait_is_not_longer_than_what_is_left(job: Make) -> None:
    listener = socket.create_server(("127.0.0.1", 0))  # it accepts connections, and never answers
    configuration = kubernetes.client.Configuration(host=f"http://127.0.0.1:{listener.getsockname()[1]}")
    cluster = Cluster(Connection(configuration, "team-a"), "team-a")
    began = time.monotonic()
    with listener, pytest.raises(WaitTimeout):
        list(Watch(cluster, job(), timeout=1))
    assert time.monotonic() - began < 10


def test_an_event_loop_gets_the_same_and_its_errors(job: Make) -> None:
    async def read(answers: Answers) -> list[str]:
        return [one.phase async for one in watched(job(), answers)]

    answers = Answers([at(job(), 1)], [[changed(ended(job), 2)]])
    assert asyncio.run(read(answers)) == ["Training", "Succeeded"]
    with pytest.raises(JobDeleted):
        asyncio.run(read(Answers([at(job(), 1)], [[{"type": "DELETED", "object": at(job(), 2)}]])))


def test_a_loop_that_stops_reading_ends_the_thread(job: Make) -> None:
    async def read_one(answers: Answers) -> None:
        async for _ in watched(job(), answers):
            break

    asyncio.run(read_one(Answers([at(job(), 1)], [])))
    for thread in threading.enumerate():
        if thread.name == "watch one":
            thread.join(10)
            assert not thread.is_alive()


def test_a_complete_job_has_its_files_digest_and_verdict(job: Make) -> None:
    artifacts = {"uri": "s3://b/out", "adapterURI": "s3://b/out/adapter", "manifestSHA256": "ab" * 32, "sizeBytes": 7}
    result = require_result(ended(job, artifacts=artifacts, evaluation={"verdict": "Better", "change": "-25 %"}))
    assert (result.uri, result.adapter_uri, result.digest) == ("s3://b/out", "s3://b/out/adapter", "ab" * 32)
    assert (result.verdict, result.evaluation.change, result.size_bytes) == ("Better", "-25 %", 7)
    assert (result.metrics.eval_loss, result.reason, result.merged_uri) == (1.5, "Succeeded", None)
    assert require_result(ended(job, artifacts=artifacts)).verdict == "NotEvaluated"
    assert result.kept_checkpoints == []
    kept = {"step": 24, "evalLoss": 1.25, "uri": "s3://b/out/kept-checkpoints/step-000024"}
    (found,) = require_result(ended(job, artifacts=artifacts | {"keptCheckpoints": [kept]})).kept_checkpoints
    assert (found.step, found.eval_loss, found.uri) == (24, 1.25, kept["uri"])


def test_a_failed_job_raises_its_reason_message_and_what_to_do(job: Make) -> None:
    with pytest.raises(JobFailed) as failed:
        require_result(ended(job, "Failed"))
    error = failed.value
    assert (error.name, error.reason) == ("one", "Diverged")
    assert error.message == "The loss is not a number: lower hyperparameters.learningRate"
    assert error.fix.startswith("logs(preflight=True) has the log")
    assert str(error).startswith("one has failed (Diverged): The loss is not a number")
    assert error.status.phase == "Failed"


def test_a_job_that_has_not_ended_has_no_result(job: Make) -> None:
    with pytest.raises(FineTuneError, match=r"one has no result yet \(Training\)"):
        require_result(job())


@pytest.mark.parametrize("call", ["refresh", "stop", "resume"])
def test_another_job_of_the_same_name_is_neither_read_nor_changed(job: Make, call: str) -> None:
    first = job()
    answers = Answers([at(first, 2, uid="another")], [])
    own = FineTuneJob(Cluster(answers, "team-a"), first)  # type: ignore[arg-type]
    with pytest.raises(JobDeleted, match="one was deleted, and another job has its name"):
        getattr(own, call)()
    assert (own.uid, answers.calls) == (first.uid, ["GET"])
