"""What champion and challenger of a release are asked through their server, and how they compare."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from finetune_api.comparing.comparison import compare
from finetune_api.evaluation import EvaluationMetric, Verdict
from finetune_api.objectives import Objective
from finetune_api.release import ReleaseComparison
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.checks.row_keys import prompt_key
from finetune_trainer.data.rows import ChatRow, DataFormat, Message, Source, TextRow
from finetune_trainer.evaluation.expectations import Expectations
from finetune_trainer.release.reading import GREETING, Reading
from finetune_trainer.release.vllm_server import ReadToken, ServerRefusedError, VLLMServer

MAX_ROWS = 64
"""Held-out rows that are asked."""
PLAIN = {"role", "content", "train"}
"""Keys of a turn that every chat template renders; rows with calls of tools are not asked."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model answers: the loss of each row with its tokens, and whether each prompt's pattern was found."""

    losses: Sequence[tuple[float, int] | None]
    matched: Sequence[bool]
    prompts: Sequence[int] = ()
    """The `prompt_key` of each row."""

    @property
    def matched_percent(self) -> float | None:
        """The share of matched patterns; None without patterns."""
        return 100 * sum(self.matched) / len(self.matched) if self.matched else None


class Questions:
    """The held-out rows of a result, and the prompts of its job that have an expected answer."""

    def __init__(self, spec: FineTuneJobSpec, rows: Iterable[Any], reading: Reading | None) -> None:
        self._tokens = spec.evaluation.max_new_tokens
        self._rows = [row for row in rows if _is_plain(row)][:MAX_ROWS]
        self._keys = [_prompt_key(row) for row in self._rows]
        self._prompts = [one for one in spec.prompts or [] if one.expected]
        self._expected = Expectations(self._prompts)
        self._is_chat = spec.objective is not Objective.DOMAIN_ADAPTATION
        self._reading = reading
        self._starts: dict[int, int] = {}
        """Length of the tokens before each row's answer but the first, the same for every adapter of a base."""
        self.problem: str | None = None
        """How the server reads the first row or prompt that it does not read as the training did."""

    def ask(self, server: VLLMServer, model: str) -> Answers:
        """Ask one model everything; at least one question, so that a model that cannot answer is found."""
        self._greet(server, model)
        matched = []
        for at, prompt in enumerate(self._prompts):
            turns = [Message(role="system", content=prompt.system)] if prompt.system else []
            turns.append(Message(role="user", content=prompt.prompt))
            matched.append(bool(self._expected.is_met(at, server.answer(model, self._fit(turns), self._tokens))))
        losses = [self._measure(server, model, at, row) for at, row in enumerate(self._rows)]
        return Answers(losses, matched, self._keys)

    def _greet(self, server: VLLMServer, model: str) -> None:
        if self._is_chat:
            self._read_prompt(server, model, [Message(role="user", content=GREETING)])
        else:
            self._read_text(server, model, GREETING)

    def _measure(self, server: VLLMServer, model: str, at: int, row: dict[str, Any]) -> tuple[float, int] | None:
        """Return the loss of the row's last answer, or None if the server refuses the row, for example its length."""
        try:
            if "text" in row:
                found = self._read_text(server, model, row["text"])
            else:
                turns = self._fit([Message(role=one["role"], content=one["content"]) for one in row["messages"]])
                if at not in self._starts:
                    self._starts[at] = len(self._read_prompt(server, model, turns[:-1]))
                found = server.read_answered(model, turns)[self._starts[at] :]
        except ServerRefusedError as refused:
            if refused.status >= 500:  # it is not the row that the server cannot answer
                raise
            return None
        return (-sum(one.log_prob for one in found) / len(found), len(found)) if found else None

    def _fit(self, turns: list[Message]) -> list[Message]:
        return self._reading.fit(turns) if self._reading else turns

    def _read_prompt(self, server: VLLMServer, model: str, turns: list[Message]) -> list[ReadToken]:
        tokens = server.read_prompt(model, turns)
        if self._reading:
            self.problem = self.problem or self._reading.find_prompt_problem(turns, tokens)
        return tokens

    def _read_text(self, server: VLLMServer, model: str, text: str) -> list[ReadToken]:
        tokens = server.read_text(model, text)
        if self._reading:
            self.problem = self.problem or self._reading.find_text_problem(text, tokens)
        return tokens


def compare_answers(champion: Answers | None, challenger: Answers, choices: int = 1) -> ReleaseComparison:
    """Return the comparison on the rows that both answered; those of one prompt are a group.

    The challenger is the best of `choices` evaluations on these rows.
    """
    prompts = challenger.prompts or range(len(challenger.losses))
    pairs = [
        (old, new, prompt)
        for old, new, prompt in zip(champion.losses if champion else (), challenger.losses, prompts, strict=False)
        if old and new and old[1] == new[1]
    ]
    before, after = [old for old, *_ in pairs], [new for _, new, _ in pairs]
    owners = [(old[1], prompt) for old, _, prompt in pairs]
    found = compare(EvaluationMetric.LOSS, before, after, choices, owners)
    return ReleaseComparison(
        verdict=(found.verdict if found else Verdict.NOT_EVALUATED).value,
        rows=len(pairs),
        champion_loss=found.before if found else None,
        challenger_loss=found.after if found else None,
        difference_low=found.low if found else None,
        difference_high=found.high if found else None,
        champion_matched_percent=champion.matched_percent if champion else None,
        challenger_matched_percent=challenger.matched_percent,
    )


def read_rows(path: Path) -> list[Any]:
    """Return the rows of a file of canonical rows; only the first are needed."""
    with path.open("rb") as file:
        return [orjson.loads(line) for _, line in zip(range(4 * MAX_ROWS), file, strict=False)]


def _prompt_key(row: dict[str, Any]) -> int:
    source = Source("", 0)
    if "text" in row:
        return prompt_key(TextRow(row["text"], source, DataFormat.TEXT))
    return prompt_key(ChatRow(row["messages"], source, DataFormat.OPENAI))


def _is_plain(row: Any) -> bool:
    if not isinstance(row, dict) or row.get("tools"):
        return False
    turns = row.get("messages") or []
    is_answered = bool(turns) and turns[-1]["role"] == "assistant" and all(one.keys() <= PLAIN for one in turns)
    return isinstance(row.get("text"), str) or is_answered
