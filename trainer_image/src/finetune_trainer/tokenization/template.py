"""A chat template, rendered in a child process with limits: a template is code of the model's author."""

import atexit
import marshal
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from finetune_trainer.data.rows import Message, ToolCall
from finetune_trainer.tokenization.template_sandbox import (
    FAILS,
    HEAD_BYTES,
    MAX_TEXT_CHARACTERS,
    VARIABLES,
    TemplateFailure,
    to_json,
)

__all__ = ["FAILS", "FALLBACK_TEMPLATE", "ChatTemplate", "TemplateFailure", "is_plain", "to_json"]

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_MEMORY_BYTES = 512 << 20
"""Memory of the child beyond what it takes at its start."""
MAX_SECONDS = 10.0
"""CPU time for one conversation; a long one takes some milliseconds."""
MAX_ANSWER_BYTES = 4 * MAX_TEXT_CHARACTERS
MAX_AHEAD_BYTES = 32 << 20
"""Of the answers to what is rendered ahead: more is rendered one by one, because all of it is in memory."""
MAX_ENDED = 3
"""Conversations by which a template may end its child before it counts as broken."""
# The child runs a stranger's template: it gets no keys.
PASSED_ON = ("PATH", "PYTHONPATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_ALL", "LC_TIME")
REASONING_ALIAS = "thinking"

# For a base model without a template: ChatML in form, but its markers are plain text, so that no embedding is added,
# and an answer ends with the model's own end token, so that generation stops as before the training.
FALLBACK_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ ((eos_token or '<|im_end|>') if message['role'] == 'assistant' else '<|im_end|>') + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


_MARKS = frozenset({"train", "untrained"})
"""Keys of a turn that are ours, and no template's."""
_PLAIN = _MARKS | {"role", "content"}


class ChatTemplate:
    """A compiled chat template; with `as_parts` it gets contents as lists of parts.

    With `arguments_as_text` it gets the arguments of tool calls as JSON, for templates that expect them so.
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        self.source = source
        self.as_parts = False
        self.arguments_as_text = False
        self._variables = dict(variables)
        self._ended = 0
        self._renders_ahead = True
        self._ahead: dict[tuple[tuple[str, str], ...], str] = {}
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateFailure(f"the chat template is longer than {MAX_TEMPLATE_CHARACTERS} characters")
        self._ask(())

    def render_ahead(self, conversations: Sequence[Sequence[Message]]) -> None:
        """Render plain conversations at once, for `render`: an exchange with the child takes longer than a rendering.

        Those that fail are left to `render`, and so is everything once the child has ended.
        """
        self._ahead = {}
        if not self._renders_ahead or not conversations:
            return
        requests = [([self._prepare(message) for message in messages], None, False) for messages in conversations]
        try:
            answers = _WORKER.ask(self.source, self._variables, requests, MAX_AHEAD_BYTES)
        except _Ended:
            self._renders_ahead = False
            return
        self._ahead = {
            _texts(messages): text
            for messages, (failed, text) in zip(conversations, answers, strict=True)
            if not failed
        }

    def render(
        self,
        messages: Sequence[Message],
        tools: list[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return the conversation as text; raises TemplateFailure."""
        is_ahead = self._ahead and not tools and not add_generation_prompt and is_plain(messages)
        if is_ahead and (known := self._ahead.get(_texts(messages))):
            return known
        return self._ask(([self._prepare(message) for message in messages], tools, add_generation_prompt))

    def list_variables(self) -> list[str]:
        """Return the names that the template reads from what it is rendered with; raises TemplateFailure."""
        return self._ask((VARIABLES,)).split()

    def _ask(self, request: tuple[object, ...]) -> str:
        if self._ended >= MAX_ENDED:
            raise TemplateFailure("the chat template exceeds its limits for one conversation after another")
        try:
            ((failed, text),) = _WORKER.ask(self.source, self._variables, [request], MAX_ANSWER_BYTES)
        except _Ended as ended:
            self._ended += 1
            raise TemplateFailure(str(ended)) from ended
        if failed:
            raise TemplateFailure(text)
        return text

    def _prepare(self, message: Message) -> dict[str, Any]:
        prepared: dict[str, Any] = {key: value for key, value in message.items() if key not in _MARKS}
        if "reasoning_content" in message:
            prepared[REASONING_ALIAS] = message["reasoning_content"]
        if self.arguments_as_text and "tool_calls" in message:
            prepared["tool_calls"] = [_with_text_arguments(call) for call in message["tool_calls"]]
        if self.as_parts:
            prepared["content"] = [{"type": "text", "text": message["content"]}]
        return prepared


class _Ended(Exception):  # noqa: N818 - what happened to the child
    """Raised if the child exceeded a limit."""


class _Worker:
    """The child process of this process; it is started for the first template, and again after a limit ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._known: dict[tuple[str, bytes], int] = {}

    def ask(
        self, source: str, variables: dict[str, Any], requests: Sequence[tuple[object, ...]], most: int
    ) -> list[tuple[bool, str]]:
        """Return for each request whether it failed, and the text or why, of at most so many bytes in all.

        An empty request only compiles the template. Raises _Ended.
        """
        with self._lock:
            child = self._running()
            key = (source, marshal.dumps(variables))
            known = self._known.get(key)
            number = len(self._known) if known is None else known
            self._known[key] = number
            new = (source, variables) if known is None else None
            message = marshal.dumps((number, new, requests))  # type: ignore[arg-type]  # JSON in tuples
            try:
                return self._exchange(child, message, len(requests), most)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """End the child, if this process has one."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.communicate()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid():
            self._known = {}
            self._owner = os.getpid()
            limits = (str(MAX_MEMORY_BYTES), str(MAX_SECONDS))
            self._child = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "finetune_trainer.tokenization.template_worker", *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            )
        return self._child

    def _exchange(
        self, child: subprocess.Popen[bytes], message: bytes, count: int, most: int
    ) -> list[tuple[bool, str]]:
        assert child.stdin is not None  # noqa: S101 - for the type checker
        assert child.stdout is not None  # noqa: S101
        answers: list[tuple[bool, str]] = []
        with suppress(BrokenPipeError):
            child.stdin.write(len(message).to_bytes(HEAD_BYTES) + message)
            child.stdin.flush()
            while len(answers) < count:
                size = int.from_bytes(child.stdout.read(HEAD_BYTES))
                answer = child.stdout.read(size) if size <= most else b""
                if not answer or len(answer) < size:
                    break
                most -= size
                answers.append((answer[:1] == b"-", answer[1:].decode("utf-8", "surrogatepass")))
        if len(answers) < count:
            child.kill()
            slow = child.wait() == -signal.SIGPROF
            limit = f"{MAX_SECONDS:g} s" if slow else f"{MAX_MEMORY_BYTES >> 20} MiB"
            raise _Ended(f"the chat template takes more than {limit} for this conversation")
        return answers


def is_plain(messages: Sequence[Message]) -> bool:
    """Return whether a template gets nothing of these turns but their roles and texts."""
    return all(message.keys() <= _PLAIN for message in messages)


def _texts(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)


def _with_text_arguments(call: ToolCall) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {"name": function["name"], "arguments": to_json(function["arguments"])}}


_WORKER = _Worker()
atexit.register(_WORKER.close)
