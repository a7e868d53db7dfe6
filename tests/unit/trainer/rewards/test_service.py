"""Rewards from a server that may be slow, wrong or hostile: what it did not say is never a reward."""

import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from graders import Server, grading, raw, respond_with_lengths, send

from finetune_api.handoff import TERMINAL_EXIT_CODES, ExitCode
from finetune_api.rewards import Reward, RewardService
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.rewards import service as module
from finetune_trainer.rewards.completion import Completion
from finetune_trainer.rewards.computed import ComputedRewards
from finetune_trainer.rewards.service import Grader, GraderFailed
from finetune_trainer.sigterm import StopFlag

NO_SECRETS = Path("/none")
ASKED = [{"role": "user", "content": "What is 1 + 2?"}]


def grader(
    server: Server,
    stop: StopFlag | None = None,
    retry_seconds: float = 0.0,
    secrets: Path = NO_SECRETS,
    **settings: Any,
) -> Grader:
    asked = {"endpoint": server.endpoint} | settings
    return at_place(asked, 0, secrets, stop=stop or StopFlag(), retry_seconds=retry_seconds)


def at_place(service: dict[str, Any], place: int, secrets: Path = NO_SECRETS, **settings: Any) -> Grader:
    settings = {"stop": StopFlag(), "on_work": lambda: None, "retry_seconds": 0.0} | settings
    return Grader(RewardService.model_validate(service), f"rlhf.rewards[{place}]", secrets, **settings)


@pytest.fixture
def server() -> Iterator[Server]:
    with grading() as one:
        yield one


def completion(text: str, **reference: Any) -> Completion:
    return Completion(ASKED, text, 1, True, None, reference or None)  # type: ignore[arg-type]


def test_many_answers_are_scored_in_their_order_in_requests_of_sixteen(server: Server) -> None:
    answers = [completion("x" * number) for number in range(100)]
    assert grader(server)(answers) == [float(number) for number in range(100)]
    assert sorted(len(one["answers"]) for one in server.asked) == [4, *[16] * 6]


def test_a_server_gets_prompt_answer_reference_and_the_columns_it_asked_for(server: Server) -> None:
    answer = completion("3", answer="three", columns={"tests": ["a", 1], "secret": "x"})
    grader(server, columns=["tests"])([answer, completion("4")])
    first, second = server.asked[0]["answers"]
    assert first == {
        "prompt": ASKED,
        "answer": "3",
        "ended": True,
        "reference": "three",
        "columns": {"tests": ["a", 1]},
    }
    assert (second["reference"], second["columns"]) == (None, {"tests": None})


def test_its_rewards_are_weighted_and_summed_with_the_others(server: Server) -> None:
    rewards = [
        Reward.model_validate({"type": "Service", "service": {"endpoint": server.endpoint}, "weight": 0.5}),
        Reward.model_validate({"type": "Regex", "pattern": "x", "weight": 2}),
    ]
    answers = [completion("xx"), completion("yyyy")]
    computed = ComputedRewards(rewards)
    assert computed.score_parts(answers) == [(2.0, 1.0), (4.0, 0.0)]
    assert computed(answers) == [3.0, 2.0]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"no json", "something else than JSON"),
        (b"[1.0]", "no list `rewards` for 1 answers"),
        (b'{"rewards": 1.0}', "no list `rewards`"),
        (b'{"rewards": []}', "0 rewards for 1 answers"),
        (b'{"rewards": [1, 2]}', "2 rewards for 1 answers"),
        (b'{"rewards": [null]}', "None as reward 0"),
        (b'{"rewards": [true]}', "True as reward 0"),
        (b'{"rewards": ["1"]}', "1 as reward 0, which is no number"),
        (b'{"rewards": [1e300]}', "1e+300 as reward 0"),
        (b'{"rewards": [NaN]}', "something else than JSON"),
        (b'{"rewards": [1e999]}', "something else than JSON"),
        (b"[" * 100_000, "something else than JSON"),
        (b" " * (module.MAX_RESPONSE_BYTES + 1), "more than 1,048,576 bytes"),
    ],
)
def test_a_response_that_is_no_reward_for_each_answer_ends_the_run(server: Server, data: bytes, problem: str) -> None:
    server.respond = raw(data)
    with pytest.raises(GraderFailed) as failed:
        grader(server)([completion("a")])
    assert problem in failed.value.message
    assert failed.value.message.startswith(f"rlhf.rewards[0]: {server.endpoint} ")
    assert failed.value.code is ExitCode.REWARD_UNAVAILABLE
    assert failed.value.code not in TERMINAL_EXIT_CODES


def test_an_error_of_the_server_is_shown_in_its_own_words_without_what_steers_a_terminal(server: Server) -> None:
    server.respond = raw(b"no module tests\x1b[2J" + b"y" * 10_000, 500)
    with pytest.raises(GraderFailed, match=r"responded with 500 \(no module tests\\u001b\[2Jy+") as failed:
        grader(server)([completion("a")])
    assert len(failed.value.message) < 500


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.respond = raw(b"", 307, Location="http://169.254.169.254/")
    with pytest.raises(GraderFailed, match="responded with 307"):
        grader(server)([completion("a")])


def test_a_compressed_response_is_not_unpacked(server: Server) -> None:
    server.respond = raw(b"\x1f\x8b" + b"0" * 100, Content_Encoding="gzip")
    with pytest.raises(GraderFailed, match="something else than JSON"):
        grader(server)([completion("a")])
    assert server.headers[0]["Accept-Encoding"] == "identity"


def test_a_response_that_comes_byte_by_byte_ends_with_its_time(server: Server) -> None:
    def crawl(handler: BaseHTTPRequestHandler, _body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not server.closing.wait(0.1):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    server.respond = crawl
    began = time.monotonic()
    with pytest.raises(GraderFailed, match="did not respond within 1 s"):
        grader(server, timeout_seconds=1)([completion("a")])
    assert time.monotonic() - began < 5


def test_a_server_that_is_not_there_is_named_with_the_reward() -> None:
    with pytest.raises(GraderFailed, match=r"rlhf.rewards\[2\]: http://127.0.0.1:1/score cannot be reached"):
        at_place({"endpoint": "http://127.0.0.1:1/score"}, 2)([completion("a")])


def test_a_response_whose_headers_never_end_ends_the_run(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)

    def drip(handler: BaseHTTPRequestHandler, _body: dict[str, Any]) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not server.closing.wait(0.1):
            handler.wfile.write(b"X-Endless: y\r\n")
            handler.wfile.flush()

    server.respond = drip
    began = time.monotonic()
    with pytest.raises(GraderFailed, match="gave no response within 2 s"):
        grader(server, timeout_seconds=1)([completion("a")])
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("host", ["grader..svc", ".grader", "x" * 64])
def test_a_host_that_is_no_name_is_a_fault_of_the_spec(host: str) -> None:
    with pytest.raises(TrainerError, match=r"rlhf.rewards\[0\].service.endpoint .* is no address") as failed:
        at_place({"endpoint": f"http://{host}:8000/score"}, 0)([completion("a")])
    assert failed.value.code is ExitCode.INVALID_CONFIG


def test_a_server_is_asked_by_the_place_of_its_reward(server: Server) -> None:
    server.respond = raw(b"{}", 500)
    rewards = [{"type": "Length", "targetTokens": 4}, {"type": "Service", "service": {"endpoint": server.endpoint}}]
    computed = ComputedRewards([Reward.model_validate(one) for one in rewards], StopFlag())
    computed._parts[1][1]._retry_seconds = 0.0  # type: ignore[attr-defined]
    with pytest.raises(GraderFailed, match=r"^rlhf.rewards\[1\]: "):
        computed.ask_services([completion("a")])


def test_a_server_that_recovers_gives_the_rewards(server: Server) -> None:
    left = [2]

    def fail_twice(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if left[0]:
            left[0] -= 1
            send(handler, b"busy", 503)
        else:
            respond_with_lengths(handler, body)

    server.respond = fail_twice
    assert grader(server, retry_seconds=60)([completion("abc")]) == [3.0]


def test_sigterm_does_not_wait_for_a_response(server: Server) -> None:
    stop, released = StopFlag(), threading.Event()

    def wait(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        stop.set()
        released.wait(60)
        respond_with_lengths(handler, body)

    server.respond = wait
    began = time.monotonic()
    with pytest.raises(Stopped):
        grader(server, stop, timeout_seconds=60)([completion("abc")] * 40)
    assert time.monotonic() - began < 10
    released.set()


def test_after_a_failure_no_further_answers_are_posted(server: Server) -> None:
    server.respond = raw(b"wrong", 400)
    with pytest.raises(GraderFailed):
        grader(server)([completion("a")] * module.BATCH * 100)
    assert len(server.asked) < 40


def test_sigterm_ends_the_retries_as_itself(server: Server) -> None:
    stop = StopFlag()

    def stop_and_fail(handler: BaseHTTPRequestHandler, _body: dict[str, Any]) -> None:
        stop.set()
        send(handler, b"busy", 503)

    server.respond = stop_and_fail
    with pytest.raises(Stopped):
        grader(server, stop, retry_seconds=60)([completion("abc")])


TOKEN = {"credentialsSecretRef": {"name": "grader"}}


def test_each_request_has_the_token_that_is_mounted_then(server: Server, tmp_path: Path) -> None:
    (tmp_path / "REWARD_TOKEN").write_text("first-token\n")
    one = grader(server, secrets=tmp_path, **TOKEN)
    one([completion("a")])
    (tmp_path / "REWARD_TOKEN").write_text("second-token")
    one([completion("a")])
    assert [asked["Authorization"] for asked in server.headers] == ["Bearer first-token", "Bearer second-token"]


def test_without_a_secret_no_token_is_sent(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "REWARD_TOKEN").write_text("token")
    monkeypatch.setenv("REWARD_TOKEN", "token")
    grader(server, secrets=tmp_path)([completion("a")])
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("token", ["", "two words", "two\nlines", "\u00e4", "x" * 5000])
def test_a_token_that_no_header_can_hold_is_refused_before_anything_is_asked(
    server: Server, tmp_path: Path, token: str
) -> None:
    (tmp_path / "REWARD_TOKEN").write_text(token, encoding="utf-8")
    with pytest.raises(
        TrainerError, match=r"rlhf.rewards\[0\].service.credentialsSecretRef: its key REWARD_TOKEN"
    ) as failed:
        grader(server, secrets=tmp_path, **TOKEN)
    assert failed.value.code is ExitCode.INVALID_CONFIG
    assert server.asked == []
    assert not token or token not in failed.value.message


@pytest.mark.parametrize("status", [200, 401, 500])
def test_what_repeats_the_token_is_not_quoted(server: Server, tmp_path: Path, status: int) -> None:
    (tmp_path / "REWARD_TOKEN").write_text("hunter2")

    def repeat(handler: BaseHTTPRequestHandler, _body: dict[str, Any]) -> None:
        said = handler.headers["Authorization"]
        send(handler, f'{{"rewards": ["{said}"]}}'.encode(), status)

    server.respond = repeat
    with pytest.raises(GraderFailed, match="responded with") as failed:
        grader(server, secrets=tmp_path, **TOKEN)([completion("a")])
    assert "hunter2" not in failed.value.message


def test_a_server_with_an_authority_of_its_own_is_asked(server: Server, tmp_path: Path) -> None:
    key, authority = tmp_path / "key.pem", tmp_path / "ca.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=grader", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, *names, "-keyout", str(key), "-out", str(authority)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    settings = {"endpoint": server.endpoint.replace("http", "https"), "caSecretRef": {"name": "ca"}}
    with pytest.raises(GraderFailed, match=r"cannot be reached .*certificate"):
        grader(server, **settings)([completion("a")])
    assert grader(server, secrets=tmp_path, **settings)([completion("four")]) == [4.0]
    authority.write_text("none")
    with pytest.raises(TrainerError, match=r"ca.crt .* rlhf.rewards\[0\].service.caSecretRef contains no") as failed:
        grader(server, secrets=tmp_path, **settings)
    assert failed.value.code is ExitCode.INVALID_CONFIG
