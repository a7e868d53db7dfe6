"""A running vLLM server: its adapters, its answers and its log-probabilities, within limits of size and time."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import orjson

from finetune_api.handoff import CA_FILE, SERVER_KEY_FILE
from finetune_trainer.errors import InvalidConfig, Stopped, one_line
from finetune_trainer.storage.http_client import TOKEN, build_trust, is_untrusted

MAX_ANSWER_BYTES = 16 * 1024 * 1024
REQUEST_SECONDS = 120.0
"""Longest request: one that loads an adapter may read it from a network volume."""
WAIT_SECONDS, WAIT_PAUSE_SECONDS = 60.0, 2.0
"""How long a server that starts is waited for, before the pod fails with the reason and the Job makes another one."""
MAX_WORDS = 400
CREDENTIALS, AUTHORITY = "target.vllm.credentialsSecretRef", "target.vllm.caSecretRef"
HIDDEN = "(hidden)"

Turns = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ReadToken:
    """A token of a prompt as the server reads it."""

    token_id: int
    text: str
    log_prob: float


class ServerRefusedError(Exception):
    """The server refuses a request, in its own words."""

    def __init__(self, status: int, words: str, *, is_route_missing: bool = False) -> None:
        super().__init__(f"the server answers {status}: {words}")
        self.status = status
        self.is_route_missing = is_route_missing


class ServerLostError(Exception):
    """The server does not answer, or not as vLLM does."""


class ServerAwayError(ServerLostError):
    """The server has not answered at all yet, for example because it starts."""


class VLLMServer:
    """Client of one server; `check` is called before each request, and may raise to end the work."""

    def __init__(self, url: str, secrets: Path | None = None, check: Callable[[], None] = lambda: None) -> None:
        """Connect to a server; `secrets` is the folder of its mounted key and authority. Raises InvalidConfig."""
        self._url = url.rstrip("/")
        self.check = check
        self._key = _read_key(secrets / SERVER_KEY_FILE) if secrets else ""
        authority = secrets / CA_FILE if secrets else None
        # Reads the authorities of the machine: once, not for each connection.
        self._tls = build_trust(authority if authority and authority.is_file() else None, AUTHORITY)
        self._http = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def reconnect(self) -> None:
        """Send what follows over a new connection, which a Service may lead to another pod."""
        self._http.close()
        self._http = self._connect()

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Send the requests of this block without `check`, so that what was begun is completed after SIGTERM too."""
        check, self.check = self.check, lambda: None
        try:
            yield
        finally:
            self.check = check

    def list_models(self) -> dict[str, str]:
        """Return the names of the models that it serves, each with its folder if it is an adapter, else with none.

        A name that the base has too is the base's: it comes first in the list, and answers.
        """
        try:
            cards = reversed(self._send("GET", "/v1/models")["data"])
            return {str(one["id"]): str(one.get("root") or "") if one.get("parent") else "" for one in cards}
        except (KeyError, TypeError, AttributeError):
            raise ServerLostError(f"{self._url}/v1/models is not the list of a vLLM server") from None

    def wait(self) -> dict[str, str]:
        """Return what `list_models` does, once the server answers; raise ServerAwayError if it does not in time."""
        deadline, away = time.monotonic() + WAIT_SECONDS, ""
        while True:
            try:
                return self.list_models()
            except ServerLostError as lost:
                away = str(lost)
            except ServerRefusedError as refused:
                if refused.status < 500:
                    raise
                away = f"{self._url}: {refused}"
            except Stopped:
                if away:  # at the Job's deadline, the report has the reason and not the signal
                    raise ServerAwayError(away) from None
                raise
            if time.monotonic() > deadline:
                raise ServerAwayError(away)
            time.sleep(WAIT_PAUSE_SECONDS)

    def load(self, name: str, folder: str, *, in_place: bool = False) -> None:
        """Load an adapter from a folder of the server; in place of the one that has the name, without a gap."""
        self._send("POST", "/v1/load_lora_adapter", lora_name=name, lora_path=folder, load_inplace=in_place)

    def unload(self, name: str) -> None:
        """Unload an adapter."""
        self._send("POST", "/v1/unload_lora_adapter", lora_name=name)

    def answer(self, model: str, turns: Turns, max_tokens: int) -> str:
        """Return the greedy answer to a conversation."""
        asked = {"model": model, "messages": turns, "max_tokens": max_tokens, "temperature": 0}
        try:
            return str(self._send("POST", "/v1/chat/completions", **asked)["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise ServerLostError(f"{self._url}/v1/chat/completions returns no answer") from None

    def read_prompt(self, model: str, turns: Turns) -> list[ReadToken]:
        """Return the tokens of a conversation as the server renders it before an answer, but the first."""
        return self._read("/v1/chat/completions", model, {"messages": turns})

    def read_answered(self, model: str, turns: Turns) -> list[ReadToken]:
        """Return the tokens of a conversation that ends with an answer, but the first."""
        asked = {"messages": turns, "add_generation_prompt": False, "continue_final_message": True}
        return self._read("/v1/chat/completions", model, asked)

    def read_text(self, model: str, text: str) -> list[ReadToken]:
        """Return the tokens of a text, but the first."""
        return self._read("/v1/completions", model, {"prompt": text})

    def _read(self, path: str, model: str, asked: dict[str, Any]) -> list[ReadToken]:
        body = asked | {"model": model, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        content = self._send("POST", path, **body)
        try:
            found = content.get("prompt_logprobs") or content["choices"][0]["prompt_logprobs"]
            tokens = [next(iter(one.items())) for one in found[1:]]
            return [
                ReadToken(int(token_id), str(value.get("decoded_token") or ""), float(value["logprob"]))
                for token_id, value in tokens
            ]
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, StopIteration):
            raise ServerLostError(f"{self._url}{path} returns no prompt_logprobs") from None

    def _send(self, method: str, path: str, **body: Any) -> Any:
        self.check()
        deadline, data = time.monotonic() + REQUEST_SECONDS, bytearray()
        try:
            with self._http.stream(method, f"{self._url}{path}", json=body or None) as answer:
                for part in answer.iter_bytes():
                    data += part
                    if len(data) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                        raise ServerLostError(f"{self._url}{path}: the answer is too long or too slow")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            fix = f": set {AUTHORITY}, or correct http/https in the url" if is_untrusted(error) else ""
            words = f"{type(error).__name__}: {one_line(str(error), 200)}{fix}"
            raise ServerLostError(f"{self._url}{path}: {words}") from None
        content = _parse(bytes(data))
        if answer.status_code >= 500 and not isinstance(content, dict):  # a proxy in front of it
            raise ServerLostError(f"{self._url}{path} answers {answer.status_code}")
        if answer.status_code != 200:
            raise _refusal(answer.status_code, content, data, self._key)
        return content

    def _connect(self) -> httpx2.Client:
        timeout = httpx2.Timeout(REQUEST_SECONDS, connect=10.0)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return httpx2.Client(verify=self._tls, timeout=timeout, follow_redirects=False, headers=headers)


def _read_key(path: Path) -> str:
    """Return the server's key; empty without a Secret."""
    if not path.is_file():
        return ""
    key = path.read_text(encoding="utf-8", errors="replace").strip()
    if not TOKEN.fullmatch(key):
        text = "is no key: one line of visible characters"
        raise InvalidConfig(f"{CREDENTIALS}: its key {SERVER_KEY_FILE} {text}")
    return key


def _parse(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _refusal(status: int, content: Any, data: bytearray, key: str) -> ServerRefusedError:
    """Return the refusal in the server's own words, which each version of it wraps differently, without the key."""
    words: Any = content
    for name in ("error", "message", "detail"):
        words = words[name] if isinstance(words, dict) and name in words else words
    if not isinstance(words, str):  # what cannot be parsed may have the key in another form
        words = "" if key else data[:MAX_WORDS].decode(errors="replace")
    is_missing = status == 404 and isinstance(content, dict) and content.get("detail") == "Not Found"
    shown = words.replace(key, HIDDEN) if key else words
    return ServerRefusedError(status, one_line(shown, MAX_WORDS), is_route_missing=is_missing)
