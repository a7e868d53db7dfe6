"""KServe's controller makes pods of the manifest that a report prints; vLLM answers in them as the report, and after a
release as the report of the released job."""

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from typing import Any

import pytest
from answering_jobs import QUESTIONS, Result
from kserve_world import Kubectl, Service
from release_world import Releases
from report_snippets import answers, snippet
from user import Bench
from vllm_server import Server
from waiting import wait_until

pytestmark = pytest.mark.timeout(1200)

ADAPTER = "The adapter"
START_SECONDS = 400
"""Until a pod with vLLM is ready, on two busy cores."""
DEADLINE_SECONDS = 270
"""More than vLLM needs to refuse an adapter, on two busy cores."""


@pytest.fixture(scope="module")
def service(_template: None, world: Any, results: list[Result], kubectl: Kubectl) -> Iterator[Service]:
    """The LLMInferenceService of the first report, ready."""
    found = Service(world, kubectl)
    found.create(snippet(results[0].report, ADAPTER, "With KServe 0.19 or later"))
    found.accept_route()
    found.wait_ready(START_SECONDS)
    yield found
    kubectl("delete", "llminferenceservice", "--all", "-n", world.namespace, "--timeout=120s")


@pytest.fixture(scope="module")
def server(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The Service of its pods, which the gateway's route names."""
    spec = service.world.core.read_namespaced_service(
        f"{service.name}-kserve-workload-svc", service.world.namespace
    ).spec
    return Server(f"http://{spec.cluster_ip}:{spec.ports[0].port}", tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def releases(service: Service, results: list[Result]) -> Iterator[Releases]:
    """A release of what the printed manifest serves, which restarts nothing."""
    found, started = Releases(service.world), set(service.pods())
    target = {"kserve": {"name": service.name, "adapterName": "tuned"}}
    found.create({"jobRef": {"name": results[0].job.name}, "target": target})
    found.wait_for("Released", seconds=180)
    assert set(service.pods()) == started
    yield found
    found.delete()


def alive(service: Service) -> set[str]:
    """The pods that are not deleted."""
    return {name for name, pod in service.pods().items() if not pod.metadata.deletion_timestamp}


class Caller(threading.Thread):
    """A client that asks the first question once a second, by one connection until that is closed, as gateways do."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._address = server.url.removeprefix("http://")
        self._ended = threading.Event()
        self.answers: list[str] = []

    def run(self) -> None:
        asked = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 128, "temperature": 0}
        body, headers = json.dumps({"model": "tuned"} | asked), {"Content-Type": "application/json"}
        connection = HTTPConnection(self._address, timeout=60)
        while not self._ended.wait(1):
            try:
                connection.request("POST", "/v1/chat/completions", body, headers)
                found = json.loads(connection.getresponse().read())
            except (HTTPException, OSError, ValueError):
                found = {}
            if "choices" in found:
                self.answers.append(found["choices"][0]["message"]["content"].strip())
            else:
                connection.close()  # the server ends; the next request opens another one
        connection.close()

    def end(self) -> None:
        self._ended.set()
        self.join(90)

    def next(self, count: int) -> set[str]:
        """The answers to the next requests."""
        start = len(self.answers) + 1  # one may be under way
        wait_until(lambda: len(self.answers) >= start + count, lambda: str(self.answers))
        return set(self.answers[start:])


@pytest.fixture
def caller(server: Server) -> Iterator[Caller]:
    found = Caller(server)
    found.start()
    yield found
    found.end()


def last_words(service: Service, pod: str) -> str:
    """What the container with vLLM wrote before it ended, last."""
    found = service.pods()[pod].status.container_statuses or []
    states = [state for one in found for state in (one.state, one.last_state) if state and state.terminated]
    return "".join(str(state.terminated.message) for state in states)


def test_a_pod_of_the_printed_manifest_answers_as_in_the_report(
    service: Service, server: Server, results: list[Result]
) -> None:
    first, second = (answers(one.report) for one in results[:2])
    assert all(len(set(one)) == 2 for one in (first.values(), second.values()))
    assert all(first[question] != second[question] for question in QUESTIONS)
    names = (service.name, "tuned")
    assert server.models() == {*names, *(f"publishers/{service.world.namespace}/models/{name}" for name in names)}
    server.check_answers(results[0].report, ADAPTER)


def test_a_release_changes_the_answers_and_the_way_back_gives_the_former_ones(
    *, service: Service, server: Server, results: list[Result], releases: Releases, caller: Caller, bench: Bench
) -> None:
    first, second, _ = results
    started = alive(service)
    assert caller.next(1) == {answers(first.report)[QUESTIONS[0]]}
    releases.patch({"jobRef": {"name": second.job.name}})
    status = releases.wait_for("Released", seconds=START_SECONDS)
    assert caller.next(10) == {answers(second.report)[QUESTIONS[0]]}
    server.check_answers(second.report, ADAPTER)
    assert started.isdisjoint(alive(service))

    before = {name: status["previous"][name] for name in ("uri", "manifestSHA256")}
    assert before["uri"] == first.uri
    releases.patch({"jobRef": None, "storage": bench.manifest("none")["spec"]["storage"]} | before)
    releases.wait_for("Released", seconds=START_SECONDS)
    assert caller.next(10) == {answers(first.report)[QUESTIONS[0]]}
    server.check_answers(first.report, ADAPTER)


def test_an_adapter_with_which_vllm_does_not_start_is_given_back_and_the_pod_of_before_answers_all_the_time(
    service: Service, server: Server, results: list[Result], releases: Releases
) -> None:
    started, entry = alive(service), service.entry()
    (before,) = (one.report for one in results if entry.startswith(f"{one.uri}/"))
    no_result = dict.fromkeys(("uri", "manifestSHA256", "storage"))
    releases.patch({"jobRef": {"name": results[2].job.name}, "progressDeadlineSeconds": DEADLINE_SECONDS} | no_result)
    refused = service.new_pod(*service.pods())
    words = "LoRA rank 24 is greater than max_lora_rank 16"
    wait_until(
        lambda: words in last_words(service, refused), lambda: last_words(service, refused), seconds=DEADLINE_SECONDS
    )
    server.check_answers(before, ADAPTER)
    status = releases.wait_for("RolledBack", seconds=DEADLINE_SECONDS + 60)
    assert words in status["message"]
    assert "raise spec.model.lora.maxRank first" in status["message"]
    assert status["answering"]["uri"] == entry.removesuffix("/adapter/")
    assert service.entry() == entry
    wait_until(lambda: alive(service) == started, lambda: str(alive(service)))
    server.check_answers(before, ADAPTER)
