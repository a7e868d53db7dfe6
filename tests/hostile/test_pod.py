"""A pod's report is rejected, or gives a status that the API server accepts and a terminal can show."""

import asyncio
import contextlib
import copy
import json
import socket
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from finetune_api.handoff import PROGRESS_LIMIT_BYTES, ProgressReport, Report, config_sha256
from finetune_api.names import ANNOTATION_INDEX, ConditionType, Reason
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.controller.progress_poller import (
    POLLS_PER_SECOND,
    ProgressError,
    ProgressPoller,
    fetch_progress,
    open_session,
    share_polls,
)
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.objects import FineTuneJob, Key
from finetune_operator.kube.observed import Target
from finetune_operator.kube.pod import Pod
from finetune_operator.metrics.registry import Metrics
from finetune_operator.policy.conditions import Conditions
from finetune_operator.policy.pods.run_outcome import judge, read_report
from finetune_operator.policy.status_report import record_lineage, record_progress, record_report
from finetune_operator.settings import Settings

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SPEC = FineTuneJobSpec.model_validate(
    {
        "objective": "Chat",
        "model": {"uri": "s3://bucket/model"},
        "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
        "output": {"uri": "s3://bucket/out"},
    }
)
SCHEMA = Draft202012Validator(structural_schema(FineTuneJobStatus))
DIGEST, WHEN = "ab" * 32, "2026-03-01T12:00:00Z"
BLOCKS: dict[str, Any] = {
    "checkpoint": {"uri": "s3://bucket/out/checkpoints/step-1", "step": 1, "savedTime": WHEN, "sha256": DIGEST},
    "resolved": {"method": "LoRA", "totalSteps": 5, "learningRate": 0.1, "targetModules": ["q_proj", "v_proj"]},
    "metrics": {"trainLoss": 1.5, "bestStep": 3, "rewardAccuracy": 0.5},
    "earlyStopping": {"stopped": True, "stoppedAtStep": 3},
}
REPORT: dict[str, Any] = BLOCKS | {
    "outcome": "Published",
    "reason": "Published",
    "message": "done",
    "lastStep": 5,
    "dataset": {"rows": 5, "rejectedRowsByCode": {"BAD_JSON": 1}, "rowsByFormat": {"messages": 4}},
    "evaluation": {"gate": "Passed", "message": "met"},
    "artifacts": {"uri": "s3://bucket/out", "manifestSHA256": DIGEST, "sizeBytes": 7},
    "lineage": {"baseModelURI": "s3://bucket/model", "seed": 1, "libraryVersions": {"torch": "2"}},
}
PROGRESS: dict[str, Any] = BLOCKS | {
    "jobUID": "job-uid",
    "heartbeat": 1,
    "progress": {"display": "5%", "percent": 5, "step": 1, "epoch": 0.1, "note": "odd", "lastUpdatedTime": WHEN},
}
ODD: list[Any] = [
    *(None, True, "", [], {}, [[]], {"": {}}, -1, 0, 1.5, 1e308, -1e308, 5e-324, 101),
    *(2**53 - 1, 2**53, 2**63, 2**64, 10**400),
    *("x" * 5000, "\x1b[2J\x1b]0;title\x07", "a\nb\r\nc", "\u202egnp.exe", "\u2028", "\ud800", "\x00", "é" * 64),
    *("NaN", "Infinity", "1e999", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0999-01-01T00:00:00Z"),
    *("2026-03-01", "2026-03-01T12:00:00", -62135596800, 253402300800, 10**18),
    *(["a", "a"], ["a"] * 65, {"\x1b[31m": 1}, {str(number): 1 for number in range(65)}, {"a": {"a": {"a": 1}}}),
]
BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def paths(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield at
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from paths(inner, (*at, name))


def spoiled(document: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The document with one to three of its fields replaced by something odd, or by anything that JSON can say."""
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
    change = st.tuples(st.sampled_from([path for path in paths(document) if path]), st.sampled_from(ODD) | anything)
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: replaced(document, changes))


def replaced(document: dict[str, Any], changes: list[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    new = json.loads(json.dumps(document))
    for path, value in changes:
        place = new
        for name in path[:-1]:
            place = place.get(name) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[path[-1]] = copy.deepcopy(value)
    return dict(new)


def job() -> FineTuneJob:
    meta = {"namespace": "team", "name": "one", "uid": "job-uid", "generation": 1}
    return FineTuneJob.from_object(
        {"metadata": meta, "spec": SPEC.model_dump(mode="json", by_alias=True, exclude_none=True)}
    )


def ended(message: str, code: int = 0) -> Pod:
    state = {"terminated": {"exitCode": code, "message": message}}
    return Pod.from_object(
        {
            "metadata": {"name": "pod", "uid": "pod"},
            "status": {"phase": "Succeeded", "containerStatuses": [{"name": "trainer", "state": state}]},
        }
    )


def check(status: FineTuneJobStatus) -> None:
    """What the API server, every reader of JSON, and a terminal need."""
    wire = orjson.loads(orjson.dumps(status.to_wire()))
    assert wire == status.to_wire()
    assert [error.message for error in SCHEMA.iter_errors(wire)] == []
    modules = wire.get("resolved", {}).get("targetModules", [])
    assert len(modules) == len(set(modules))
    text = json.dumps(wire, ensure_ascii=False)
    assert [one for one in text if unicodedata.category(one) in {"Cc", "Zl", "Zp", "Cs"} or one in BIDIRECTIONAL] == []


@given(spoiled(REPORT))
@example(replaced(REPORT, [(("artifacts", "manifestSHA256"), "\u202egnp.exe")]))
@example(replaced(REPORT, [(("message",), "\x1b[2J" * 250)]))
def test_a_report_is_refused_or_is_a_status_that_can_be_stored(document: dict[str, Any]) -> None:
    one = job()
    text = json.dumps(document | {"jobUID": one.uid, "configSHA256": config_sha256(SPEC)})
    report = read_report(ended(text), one)
    if report is not None:
        status = FineTuneJobStatus()
        record_report(status, report)
        record_lineage(status, report, SPEC)
        Conditions(status, 1, NOW).set(ConditionType.FAILED, "True", Reason.DIVERGED, report.message)
        check(status)


@given(spoiled(PROGRESS))
@example(replaced(PROGRESS, [(("checkpoint", "uri"), "s3://bucket/\u202egnp.exe")]))
@example(replaced(PROGRESS, [(("progress", "note"), "\x9b" * 1024), (("progress", "display"), "\x1b" * 64)]))
async def test_a_progress_answer_is_refused_or_is_a_status_that_can_be_stored(document: dict[str, Any]) -> None:
    try:
        body = orjson.loads(json.dumps(document))
        report = ProgressReport.model_validate(body)
    except ValueError:
        return
    status = FineTuneJobStatus()
    record_progress(status, report, NOW)
    check(status)


@pytest.mark.parametrize(
    "message",
    ["[" * 4000, '{"a":' * 700, "9" * 4000, "\x00", '"\\ud800"', "[" * 2000 + "]" * 2000, "{}", "null", "é" * 2100],
)
def test_a_message_that_is_not_a_report_is_none(message: str) -> None:
    assert read_report(ended(message), job()) is None


@pytest.mark.parametrize("index", ["²", "9" * 5000, "-1", "\uff11", "0x1", " 1", ""])
def test_a_rank_that_is_not_a_number_is_the_first(index: str) -> None:
    assert Pod.from_object({"metadata": {"name": "a", "uid": "b", "annotations": {ANNOTATION_INDEX: index}}}).rank == 0


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("EvictionByEvictionAPI", "EvictionByEvictionAPI"),
        ("Spot_Reclaim:zone,a", "SpotReclaimzonea"),
        ("7days", "days"),
        ("__", "Preempted"),
        ("x" * 900, "x" * 64),
    ],
)
def test_a_disruption_by_any_name_is_a_reason_that_a_condition_may_have(reason: str, shown: str) -> None:
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": reason}]
    found = Pod.from_object({"metadata": {"name": "a", "uid": "b"}, "status": {"conditions": conditions}}).disruption
    assert found == shown
    Conditions(FineTuneJobStatus(), 1, NOW).set(ConditionType.VALIDATED, "False", found)


def test_a_pod_on_its_nodes_network_has_no_address_to_poll() -> None:
    meta, status = {"name": "a", "uid": "b"}, {"phase": "Running", "podIP": "10.0.0.1"}
    assert Pod.from_object({"metadata": meta, "spec": {}, "status": status}).ip == "10.0.0.1"
    assert Pod.from_object({"metadata": meta, "spec": {"hostNetwork": True}, "status": status}).ip is None


@pytest.mark.parametrize(
    "digest", ["", "abc", "ab" * 31 + "\x1b[", "\u202e" * 64, "AB" * 32, "ab" * 32 + "\n", "ab" * 33]
)
@pytest.mark.parametrize("block", ["artifacts", "checkpoint", "lineage"])
def test_a_report_whose_digest_is_not_a_sha_256_is_refused(block: str, digest: str) -> None:
    name = {"artifacts": "manifestSHA256", "checkpoint": "sha256", "lineage": "datasetSHA256"}[block]
    known = REPORT | {"jobUID": job().uid, "configSHA256": config_sha256(SPEC)}
    assert read_report(ended(json.dumps(known)), job()) is not None
    assert read_report(ended(json.dumps(known | {block: known[block] | {name: digest}})), job()) is None


HOSTILE = ["\u202egnp.exe", "a\x1b[2J", "a\x9b2J", "a\nb", "a\u2066b", "a\u061cb", "a\u2028b", "a\x7f", "a\tb"]
STOPPED = {"attempt": 1, "podName": "one-1-abc", "podUID": "u", "startTime": WHEN, "endTime": WHEN}


@pytest.mark.parametrize(
    "path",
    [
        *(("artifacts", name) for name in ("uri", "adapterURI", "reportURI", "manifestURI", "manifestSHA256")),
        *(("lineage", name) for name in ("baseModelURI", "datasetSHA256", "preflightSHA256")),
        *(("checkpoint", name) for name in ("uri", "sha256")),
        ("stoppedRuns", "podName"),
        ("stoppedRuns", "podUID"),
        ("lineage", "baseModelRevision"),
    ],
)
def test_a_report_with_a_digest_a_name_or_a_uri_that_a_terminal_obeys_is_refused(path: tuple[str, str]) -> None:
    block, name = path
    known = REPORT | {"stoppedRuns": [STOPPED], "jobUID": job().uid, "configSHA256": config_sha256(SPEC)}
    assert read_report(ended(json.dumps(known)), job()) is not None
    for text in HOSTILE:
        old = known[block]
        new = [old[0] | {name: text}] if isinstance(old, list) else old | {name: text}
        assert read_report(ended(json.dumps(known | {block: new})), job()) is None, text


def test_every_text_of_the_status_is_free_of_what_a_terminal_obeys() -> None:
    report = Report.model_validate(
        {"outcome": "Failed", "reason": "a\x1bb", "message": "\x1b[31mred\nline", "jobUID": "u", "configSHA256": "c"}
    )
    assert (report.reason, report.message) == ("a\\u001bb", "\\u001b[31mred\\nline")


def test_the_kubelets_last_lines_reach_a_condition_without_what_a_terminal_obeys() -> None:
    outcome = judge(ended("\x1b[2Jnext\x9b2J \u202egnp.exe", code=1), None)
    status = FineTuneJobStatus()
    Conditions(status, 1, NOW).set(ConditionType.FAILED, "True", outcome.reason, outcome.message)
    check(status)
    (found,) = status.conditions or []
    assert found.message.startswith("\\u001b[2Jnext\\u009b2J \\u202egnp.exe")


def test_what_an_older_operator_stored_is_still_read() -> None:
    stored = {
        "artifacts": {"uri": "s3://bucket/a b/é", "manifestSHA256": DIGEST},
        "history": [{"run": 1, "attempt": 1, "podName": "\u202e", "podUID": "u", "result": " ", "reason": "a b"}],
        "lineage": {"baseModelRevision": "main", "baseModelURI": "hf://owner/model"},
    }
    assert FineTuneJobStatus.model_validate(stored).to_wire() == stored


# /progress

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
GZIP = bytes.fromhex("1f8b0800000000000203") + b"\x00" * 200
ANSWERS = {
    "a redirect to metadata": b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n",
    "a broken chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    "a body cut short": OK + b"Content-Length: 9999\r\n\r\n{}",
    "a body without end": OK + b"\r\n" + b" " * (PROGRESS_LIMIT_BYTES + 9000),
    "a header without end": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000,
    "more headers than fit": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 40_000 + b"\r\n",
    "no HTTP": b"\x16\x03\x01\x00\x00SSH-2.0",
    "an odd length": OK + b"Content-Length: -1\r\n\r\n",
    "packed bytes": OK + b"Content-Encoding: gzip\r\nContent-Length: 210\r\n\r\n" + GZIP,
    "deep nesting": OK + b"Content-Length: 60000\r\n\r\n" + b"[" * 60_000,
    "a time before all times": OK
    + b"\r\n"
    + orjson.dumps(PROGRESS | {"checkpoint": BLOCKS["checkpoint"] | {"savedTime": "0001-01-01T00:00:00+23:59"}}),
    "a number beyond 64 bits": OK + b"\r\n" + json.dumps(PROGRESS | {"metrics": {"bestStep": 10**40}}).encode(),
    "nothing": b"",
}


async def serve(answer: bytes) -> tuple[asyncio.Server, int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("kind", ANSWERS)
async def test_a_hostile_answer_is_refused(kind: str) -> None:
    server, port = await serve(ANSWERS[kind])
    async with server, open_session() as session:
        with pytest.raises((ProgressError, aiohttp.ClientError)):
            await fetch_progress(session, Target("job-uid", "pod", "name", "127.0.0.1"), port)


async def test_an_unexpected_answer_does_not_end_the_polling() -> None:
    cache, queue = WatchCache(), WorkQueue(8)
    cache.targets = {
        Key("team", "odd"): Target("job-uid", "odd", "name", "fe80::1%\udcff"),
        Key("team", "good"): Target("job-uid", "pod", "name", "127.0.0.1"),
    }
    server, port = await serve(OK + b"\r\n" + orjson.dumps(PROGRESS))
    poller = asyncio.create_task(ProgressPoller(cache, queue, Settings(trainer_image="x"), Metrics(), port).run())
    async with server:
        polled = {await asyncio.wait_for(queue.get(), 10) for _ in range(2)}
    assert not poller.done()
    poller.cancel()
    assert polled == set(cache.targets)
    assert cache.readings[Key("team", "odd")].problem
    assert cache.readings[Key("team", "good")].report


OTHER = Key("other", "one")


async def test_hundreds_of_silent_trainers_delay_no_progress_of_another_namespace() -> None:
    """A first round of the silent ones takes fifty seconds: ten batches, each for the whole timeout."""
    cache, queue = WatchCache(), WorkQueue(8)
    settings = Settings(trainer_image="x", progress_interval_seconds=0.5)
    polls = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal polls
        await reader.readuntil(b"\r\n\r\n")
        polls += 1
        body = orjson.dumps({"jobUID": "job", "heartbeat": polls, "progress": {"step": 1}})
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        writer.close()

    with contextlib.ExitStack() as stack:
        # A port that is free at every address, and that nobody else is given while it is bound here.
        reserved = stack.enter_context(socket.socket())
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("", 0))
        port = reserved.getsockname()[1]
        stack.enter_context(socket.create_server(("127.0.0.2", port), backlog=1024))
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        for number in range(200):
            target = Target("job", f"silent-{number}", f"silent-{number}", "127.0.0.2")
            cache.targets[Key("silent", str(number))] = target
        cache.targets[OTHER] = Target("job", "pod", "pod", "127.0.0.1")
        poller = asyncio.create_task(ProgressPoller(cache, queue, settings, Metrics(), port).run())
        async with server, asyncio.timeout(20):
            while polls < 3:
                assert not poller.done()
                queue.done(await queue.get())
        poller.cancel()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"a": 1}, {"a": 10}),
        ({"a": 5000, "b": 1}, {"a": 5000 / (POLLS_PER_SECOND - 0.1), "b": 10}),
        ({"a": 2000, "b": 2000}, {"a": 200, "b": 200}),
        ({}, {}),
    ],
)
def test_the_polls_are_shared_between_namespaces(counts: dict[str, int], expected: dict[str, float]) -> None:
    assert share_polls(counts, 10) == pytest.approx(expected)
