"""Rewards from a server of the job's users: answers are posted to it, and its numbers are checked, never guessed."""

import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson

from finetune_api.handoff import CA_FILE, REWARD_TOKEN_FILE, ExitCode
from finetune_api.rewards import RewardService
from finetune_api.text.printable import printable
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.rewards.completion import Completion
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.http_client import TOKEN, open_http
from finetune_trainer.storage.retries import retry

BATCH = 16
"""Answers of one request."""
AT_ONCE = 8
"""Requests under way."""
CONNECT_SECONDS = 5.0
STOP_SECONDS = 1.0
"""How long SIGTERM may go unnoticed."""
RETRY_SECONDS = 180.0
"""How long a server that fails or cannot be reached is tried again before the run ends."""
MAX_RESPONSE_BYTES = 1 << 20
SHOWN_BYTES = 200
LARGEST = 1e6


class GraderFailed(TrainerError):  # noqa: N818 - named after the event
    """The server gave no rewards that can be used: what it did not say is no reward."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.REWARD_UNAVAILABLE, message)


class Grader:
    """One server that scores answers, in requests of at most 16 answers, of which 8 are under way.

    `secrets` is the folder of the reward's mounted token and authority; outside a pod the token is that of the
    environment.
    """

    def __init__(
        self,
        service: RewardService,
        name: str,
        secrets: Path,
        *,
        stop: StopFlag,
        on_work: Callable[[], None],
        retry_seconds: float | None = None,
    ) -> None:
        self._service, self._name, self._secrets, self._stop, self._on_work = service, name, secrets, stop, on_work
        self._retry_seconds = RETRY_SECONDS if retry_seconds is None else retry_seconds
        timeout = httpx2.Timeout(service.timeout_seconds, connect=min(CONNECT_SECONDS, service.timeout_seconds))
        self._read_token()
        own, limits = secrets / CA_FILE, httpx2.Limits(max_connections=AT_ONCE)
        self._http = open_http(own if own.is_file() else None, timeout, f"{name}.service.caSecretRef", limits=limits)

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Return one finite reward per answer, in their order; raises GraderFailed."""
        batches = [completions[start : start + BATCH] for start in range(0, len(completions), BATCH)]
        waiting, ended = deque(enumerate(batches)), queue.SimpleQueue[tuple[int, list[float] | Exception]]()
        for _ in range(min(AT_ONCE, len(batches))):
            threading.Thread(target=self._work, args=(waiting, ended), name="grader", daemon=True).start()
        found: dict[int, list[float]] = {}
        longest = self._retry_seconds + 2 * self._service.timeout_seconds + CONNECT_SECONDS
        moved = time.monotonic()
        while len(found) < len(batches):
            try:
                at, result = ended.get(timeout=STOP_SECONDS)
            except queue.Empty:
                self._stop.raise_if_set()
                if time.monotonic() - moved > longest:  # headers byte by byte, which no timeout of the client ends
                    waiting.clear()
                    raise self._failure(f"gave no response within {longest:.0f} s") from None
                continue
            moved = time.monotonic()
            if isinstance(result, Exception):
                waiting.clear()
                self._stop.raise_if_set()
                raise result
            found[at] = result
            self._on_work()
        return [reward for at in range(len(batches)) for reward in found[at]]

    def _work(
        self, waiting: "deque[tuple[int, Sequence[Completion]]]", ended: "queue.SimpleQueue[tuple[int, Any]]"
    ) -> None:
        """Score batches until none is left. In a thread that ends with the process: SIGTERM waits for no response."""
        while waiting:
            try:
                at, batch = waiting.popleft()
            except IndexError:
                return
            try:
                ended.put((at, self._score(batch)))
            except Exception as error:  # noqa: BLE001 - raised in the thread that asked
                ended.put((at, error))

    def _score(self, batch: Sequence[Completion]) -> list[float]:
        body = orjson.dumps({"answers": [self._describe(one) for one in batch]})

        def ask() -> list[float]:
            with self._named():
                return self._read_rewards(self._post(body), len(batch))

        return retry(ask, self._is_worth_a_retry, self._retry_seconds, self._stop)

    def _describe(self, completion: Completion) -> dict[str, Any]:
        """Return what is posted of an answer."""
        kept = completion.reference or {}
        columns = kept.get("columns", {})
        return {
            "prompt": completion.prompt,
            "answer": completion.text,
            "ended": completion.ended,
            "reference": kept.get("answer"),
            "columns": {name: columns.get(name) for name in self._service.columns or ()},
        }

    def _read_token(self) -> str | None:
        """Return the token as it is now: it may be replaced while a training runs."""
        if self._service.credentials_secret_ref is None:
            return None
        path, where = self._secrets / REWARD_TOKEN_FILE, f"the variable {REWARD_TOKEN_FILE}"
        token = os.environ.get(REWARD_TOKEN_FILE, "")
        if path.is_file():
            token, where = path.read_text(encoding="utf-8", errors="replace").strip(), f"its key {REWARD_TOKEN_FILE}"
        if not TOKEN.fullmatch(token):
            message = f"{self._name}.service.credentialsSecretRef: {where} is no token: one line of visible characters"
            raise InvalidConfig(message)
        return token

    def _post(self, body: bytes) -> bytes:
        """Return the body of a successful response, limited in size and in time; no redirect is followed."""
        deadline = time.monotonic() + self._service.timeout_seconds
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if token := self._read_token():
            headers["Authorization"] = f"Bearer {token}"
        received = bytearray()
        with self._http.stream("POST", self._service.endpoint, content=body, headers=headers) as response:
            limit = MAX_RESPONSE_BYTES if response.status_code == httpx2.codes.OK else SHOWN_BYTES
            for block in response.iter_raw():
                received += block
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the response is too slow", request=response.request)
                if len(received) > limit:
                    break
            if response.status_code != httpx2.codes.OK:
                # One that got a token is not quoted: servers repeat what they refuse.
                text = "" if token else f" ({printable(received[:SHOWN_BYTES].decode(errors='replace'))})"
                raise self._failure(f"responded with {response.status_code}{text}")
            if len(received) > limit:
                raise self._failure(f"responded with more than {limit:,} bytes")
        return bytes(received)

    def _read_rewards(self, data: bytes, count: int) -> list[float]:
        try:
            content = orjson.loads(data)
        except ValueError:
            raise self._failure("responded with something else than JSON") from None
        rewards = content.get("rewards") if isinstance(content, dict) else None
        if not isinstance(rewards, list) or len(rewards) != count:
            found = f"{len(rewards)} rewards" if isinstance(rewards, list) else "no list `rewards`"
            raise self._failure(f"responded with {found} for {count} answers")
        for at, reward in enumerate(rewards):
            if isinstance(reward, bool) or not isinstance(reward, int | float) or not _is_usable(reward):
                has_token = self._service.credentials_secret_ref is not None
                text = "something" if has_token else printable(str(reward)[:SHOWN_BYTES])
                raise self._failure(f"responded with {text} as reward {at}, which is no number from -1e6 to 1e6")
        return [float(reward) for reward in rewards]

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Translate the client's errors into ours."""
        try:
            yield
        except (httpx2.InvalidURL, UnicodeError):
            message = f"{self._name}.service.endpoint {self._service.endpoint} is no address: correct the host"
            raise InvalidConfig(message) from None
        except httpx2.TimeoutException:
            raise self._failure(f"did not respond within {self._service.timeout_seconds} s") from None
        except httpx2.HTTPError as error:
            raise self._failure(f"cannot be reached ({printable(str(error)[:SHOWN_BYTES])})") from None

    def _failure(self, what: str) -> GraderFailed:
        return GraderFailed(f"{self._name}: {self._service.endpoint} {what}: read the log of that server")

    def _is_worth_a_retry(self, error: Exception) -> bool:
        return isinstance(error, GraderFailed) and not self._stop.is_set()


def _is_usable(reward: float) -> bool:
    return math.isfinite(reward) and abs(reward) <= LARGEST
