"""Convert canonical rows to token ids and labels.

    labeler = Labeler(model_directory)
    result = labeler.encode(row, "Chat", max_length=2048)   # a list of samples, or BadRow with a code and a detail

A ChatRow gives `Encoded`: Instruction trains the last answer, Chat every answer not marked `train: false`; only answers
and the tokens that stop them carry labels, or, with "Everything", all tokens but those of answers with this mark.
A TextRow gives `Encoded` with every token trained, a PreferenceRow
`EncodedPair`, an UnpairedRow `EncodedLabelled`, a PromptRow `EncodedPrompt`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import orjson

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_api.handoff import ExitCode
from finetune_trainer.data.rows import (
    BadRow,
    ChatRow,
    DataFormat,
    Labelling,
    Message,
    PreferenceRow,
    PromptRow,
    Row,
    Source,
    TextRow,
    UnpairedRow,
)
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.tokenization.answer_samples import PendingAnswers, PendingPrompt, Prompt
from finetune_trainer.tokenization.chat_samples import PendingChat, PendingRow, PendingText
from finetune_trainer.tokenization.chosen_template import (
    CHATML_MARKS,
    NO_CHOICE,
    TemplateChoice,
    UnusedVariables,
    choose_templates,
)
from finetune_trainer.tokenization.previews import Piece, preview_pending, preview_samples
from finetune_trainer.tokenization.renderer import FIX, Renderer
from finetune_trainer.tokenization.samples import UNTRAINED, Encoded, Sample
from finetune_trainer.tokenization.template import TemplateFailure
from finetune_trainer.tokenization.token_spans import Tokens
from finetune_trainer.tokenization.tokenizer import (
    DEFAULT,
    TOOL_USE,
    TokenizerFiles,
    TokenizerUnavailable,
    load_tokenizer_files,
    special_token_pattern,
    tokenizer_sha256,
)
from finetune_trainer.tokenization.turn_spans import Tools

# What is rendered before it is tokenised: a token takes about a hundred bytes until its sample is made.
CHARACTERS_AT_ONCE = 1 << 21
CHOSEN_FIELD, KWARGS_FIELD = "spec.model.chatTemplate", "spec.model.chatTemplateKwargs"
PROBE_LENGTH = 1 << 20
_PROBE = (
    Message(role="system", content="Answer briefly."),
    Message(role="user", content="Where is the fox?"),
    Message(role="assistant", content="It is here."),
)

__all__ = ["UNTRAINED", "Encoded", "Labeler", "load_labeler"]


class Labeler:
    """Builds samples with one model's tokenizer and chat template; raises TokenizerUnavailable without the former."""

    def __init__(self, directory: Path, choice: TemplateChoice = NO_CHOICE) -> None:
        files = load_tokenizer_files(directory)
        self.tokenizer_sha256 = tokenizer_sha256(directory)
        self.tokenizer = files.tokenizer
        self.special_tokens = files.special_tokens
        self.is_fallback_template = files.template is None and not choice.is_template
        self.templates = choose_templates(files, choice)
        self._tokens = Tokens(files)
        self._special_pattern = special_token_pattern(files.special_tokens)
        self._special_pattern_of_turns = special_token_pattern(
            (*files.special_tokens, *(CHATML_MARKS if self.is_fallback_template or choice.name == "ChatML" else ()))
        )
        self._plain = Renderer(self.template_text, files)
        with_tools = self.templates.get(TOOL_USE)
        self._with_tools = self._plain if with_tools is None else Renderer(with_tools, files)
        _refuse_unknown_ids(self, files)

    @property
    def template_text(self) -> str:
        """The template of conversations without tools."""
        return self.templates[DEFAULT]

    @property
    def added_bos(self) -> str:
        """The token that the tokenizer itself puts before every text; empty if it puts none."""
        return self._tokens.added_bos

    @property
    def template_sha256(self) -> str:
        """The digest of that template's text, for the lineage."""
        return hashlib.sha256(self.template_text.encode()).hexdigest()

    def stop_ids(self) -> list[int]:
        """Return the tokens that the template writes after an answer."""
        return self._tokens.encode(self._plain.end_of_answer())

    def stop_id(self) -> int:
        """Return which of them stops the model: the first special token, because a space may precede it."""
        ends = self.stop_ids()
        return next((one for one in ends if self.tokenizer.id_to_token(one) in self.special_tokens), ends[0])

    def renderer(self, tools: Tools) -> Renderer:
        """Return the renderer of conversations with these tools, or without tools."""
        return self._with_tools if tools else self._plain

    def encode(self, row: Row, objective: Labelling, max_length: int) -> Sequence[Sample] | BadRow:
        """Return the row's samples or its error; several only of a text that is too long for one, or if the template
        alters earlier answers."""
        return self.encode_batch([row], objective, max_length)[0]

    def encode_batch(
        self, rows: Sequence[Row], objective: Labelling, max_length: int
    ) -> list[Sequence[Sample] | BadRow]:
        """Encode many rows at once, which is faster; the results are in the order of the rows."""
        if len(rows) > 1:
            self._plain.render_ahead(_plain_conversations(rows, self._plain, objective))
        results: list[Sequence[Sample] | BadRow] = []
        pending: list[PendingRow | BadRow] = []
        characters = 0
        for row in rows:
            pending.append(self._try_render(row, objective))
            characters += pending[-1].characters if not isinstance(pending[-1], BadRow) else 0
            if characters > CHARACTERS_AT_ONCE:
                results += self._finish(pending, max_length)
                pending, characters = [], 0
        return results + self._finish(pending, max_length)

    def _finish(self, pending: list[PendingRow | BadRow], max_length: int) -> list[Sequence[Sample] | BadRow]:
        texts = [text for one in pending if not isinstance(one, BadRow) for text in one.texts]
        encodings = iter(self._tokens.encode_batch(texts))
        results: list[Sequence[Sample] | BadRow] = []
        for one in pending:
            if isinstance(one, BadRow):
                results.append(one)
                continue
            try:
                results.append(one.finish(list(islice(encodings, len(one.texts))), max_length))
            except BadRow as bad:
                results.append(bad)
        return results

    def preview(self, row: Row, objective: Labelling = "Chat", max_length: int | None = None) -> list[Piece]:
        """Return the row's text in pieces, each with whether it is trained, and no more than fits; raises BadRow."""
        pending = self._render(row, objective)
        if max_length is not None:
            samples = pending.finish(self._tokens.encode_batch(pending.texts), max_length)
            if any(sample.truncated for sample in samples):
                return preview_samples(samples, self.tokenizer)
        return preview_pending(pending, self.tokenizer)

    def render_prompt(self, messages: Sequence[Message], tools: Tools = None) -> tuple[str, list[int]]:
        """Return the text and ids that ask the model for the next answer; raises BadRow with TEMPLATE_ERROR."""
        renderer = self.renderer(tools)
        text = renderer.render_prompt(renderer.fit_system(list(messages))[0], tools)
        return text, self._tokens.encode(text)

    def _try_render(self, row: Row, objective: Labelling) -> PendingRow | BadRow:
        try:
            return self._render(row, objective)
        except BadRow as bad:
            return bad

    def _render(self, row: Row, objective: Labelling) -> PendingRow:
        if isinstance(row, TextRow):
            self._refuse_special_tokens(row.text)
            return PendingText(row.text, self._tokens)
        self._refuse_special_tokens_in_tools(row.tools)
        match row:
            case ChatRow():
                return self._render_chat(row, objective)
            case PreferenceRow():
                answers = [row.chosen, row.rejected]
                return self._render_answers(row.prompt, answers, row.tools, is_scored=objective == "RewardModel")
            case UnpairedRow():
                return self._render_answers(row.prompt, [row.completion], row.tools, desirable=row.label)
            case PromptRow():
                return self._render_prompt_row(row)

    def _render_chat(self, row: ChatRow, objective: Labelling) -> PendingChat:
        self._refuse_special_tokens_in_turns(row.messages)
        renderer = self.renderer(row.tools)
        messages, repairs = renderer.fit_system(row.messages)
        if objective == "Everything":
            found = renderer.find_everything(messages, row.tools)
        else:
            found = renderer.find(messages, row.tools, _trained_turns(messages, objective))
        return PendingChat(found, repairs, self._tokens)

    def _render_answers(
        self,
        prompt: list[Message],
        answers: Sequence[list[Message]],
        tools: Tools,
        *,
        desirable: bool = True,
        is_scored: bool = False,
    ) -> PendingAnswers:
        """Return the prompt with its answers; those that are only scored may have several turns."""
        self._refuse_special_tokens_in_turns(prompt)
        renderer = self.renderer(tools)
        found = []
        for answer in answers:
            if not _is_answer(answer):
                raise BadRow(RejectCode.NO_SHARED_PROMPT, "an answer must begin and end with an assistant turn")
            if len(answer) > 1 and not is_scored:  # the loss would be over its user and tool turns, too
                detail = f"an answer must be one assistant turn, not {len(answer)} turns"
                raise BadRow(RejectCode.NO_SHARED_PROMPT, detail)
            if any("untrained" in message for message in answer):
                detail = "parts of an answer are marked train: false, and an answer is judged as a whole"
                raise BadRow(RejectCode.NOT_FOR_OBJECTIVE, detail)
            self._refuse_special_tokens_in_turns(answer)
            messages, turns, repairs = _with_answer(renderer, prompt, answer)
            found.append(renderer.find(messages, tools, turns))
            if len(found[-1].renderings) > 1:
                detail = f"the chat template alters the answer of turn {turns[0] + 1} once others follow"
                raise BadRow(RejectCode.TEMPLATE_ERROR, detail)
        return PendingAnswers(
            Prompt(prompt, tools, renderer, self._tokens),
            [one.renderings[0] for one in found],
            repairs,
            sum(one.reasoning_lost for one in found),
            desirable,
        )

    def _render_prompt_row(self, row: PromptRow) -> PendingPrompt:
        self._refuse_special_tokens_in_turns(row.prompt)
        renderer = self.renderer(row.tools)
        messages, repairs = renderer.fit_system(row.prompt)
        text = renderer.render_whole_prompt(messages, row.tools)
        return PendingPrompt(Prompt(row.prompt, row.tools, renderer, self._tokens), text, repairs, row.reference)

    def _refuse_special_tokens(self, text: str) -> None:
        if found := self._special_pattern.search(text):
            raise BadRow(RejectCode.CONTROL_TOKEN_IN_TEXT, f"the text contains the special token {found.group()!r}")

    def _refuse_special_tokens_in_turns(self, messages: Sequence[Message]) -> None:
        for number, message in enumerate(messages, 1):
            found = self._special_pattern_of_turns.search(message["content"])
            if not found and len(message) > 2:
                found = self._special_pattern_of_turns.search(orjson.dumps(message).decode())
            if found:
                detail = f"turn {number} contains the special token {found.group()!r}"
                raise BadRow(RejectCode.CONTROL_TOKEN_IN_TEXT, detail)

    def _refuse_special_tokens_in_tools(self, tools: Tools) -> None:
        if tools and (found := self._special_pattern_of_turns.search(orjson.dumps(tools).decode())):
            raise BadRow(RejectCode.CONTROL_TOKEN_IN_TEXT, f"tools contain the special token {found.group()!r}")


def load_labeler(directory: Path, name: str, choice: TemplateChoice = NO_CHOICE) -> Labeler:
    """Return the labeler of a model's folder; raises ModelUnavailable if it cannot be used, or InvalidConfig if the
    chosen template cannot be. `name` is for messages."""
    try:
        labeler = Labeler(directory, choice)
    except (TokenizerUnavailable, TemplateFailure) as error:
        if isinstance(error, UnusedVariables):
            raise InvalidConfig(f"{KWARGS_FIELD}: {error}") from error
        if isinstance(error, TemplateFailure) and choice.is_template:
            raise InvalidConfig(f"{CHOSEN_FIELD}: {error}") from error
        message = f"{name}: the tokenizer cannot be used: {error}"
        raise TrainerError(ExitCode.MODEL_UNAVAILABLE, message) from error
    if choice.is_template:
        _refuse_broken(labeler)
    return labeler


def _refuse_broken(labeler: Labeler) -> None:
    """Refuse a chosen template that renders no plain question with its answer, with or without a system text."""
    system, *asked = _PROBE
    rows = [ChatRow(messages, Source("", 0), DataFormat.OPENAI) for messages in (asked, [system, *asked])]
    problems = [one.detail for one in labeler.encode_batch(rows, "Chat", PROBE_LENGTH) if isinstance(one, BadRow)]
    if len(problems) == len(rows):
        problem = problems[0].removesuffix(f": {FIX}")
        what = f"{CHOSEN_FIELD}: it cannot render a question and its answer: {problem}"
        raise InvalidConfig(f"{what}: correct the template, or choose another")


def _refuse_unknown_ids(labeler: Labeler, files: TokenizerFiles) -> None:
    """Check the ids: a token that is only in a config may have an id beyond the model's embeddings."""
    if files.vocabulary is None:
        return
    try:
        ids = labeler.render_prompt([Message(role="user", content="a")])[1] + labeler.stop_ids()
    except (BadRow, TemplateFailure):
        return  # each row reports its own error
    unknown = next((token for token in ids if token >= files.vocabulary), None)
    if unknown is not None:
        raise TokenizerUnavailable(
            f"{files.tokenizer.id_to_token(unknown)!r}, which the chat template writes, has the id {unknown}, "
            f"but the model has only {files.vocabulary} tokens"
        )


def _plain_conversations(
    rows: Iterable[Row], renderer: Renderer, objective: Labelling
) -> Iterator[tuple[list[Message], list[int]]]:
    """Yield the fitted conversations without tools whose answers will be searched, with the turns of these."""
    for row in rows:
        match row:
            case ChatRow(tools=None) if objective != "Everything":
                messages, _ = renderer.fit_system(row.messages)
                with suppress(BadRow):
                    yield messages, _trained_turns(messages, objective)
            case PreferenceRow(tools=None):
                for answer in filter(_is_answer, (row.chosen, row.rejected)):
                    yield _with_answer(renderer, row.prompt, answer)[:2]
            case UnpairedRow(tools=None) if _is_answer(row.completion):
                yield _with_answer(renderer, row.prompt, row.completion)[:2]


def _is_answer(turns: Sequence[Message]) -> bool:
    return bool(turns) and {turns[0]["role"], turns[-1]["role"]} == {"assistant"}


def _with_answer(
    renderer: Renderer, prompt: list[Message], answer: list[Message]
) -> tuple[list[Message], list[int], tuple[RepairCode, ...]]:
    """Return the fitted conversation, the first and the last turn of the answer in it, and the repairs."""
    messages, repairs = renderer.fit_system([*prompt, *answer])
    return messages, sorted({len(messages) - len(answer), len(messages) - 1}), repairs


def _trained_turns(messages: Sequence[Message], objective: Labelling) -> list[int]:
    answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    turns = [
        turn for turn in (answers[-1:] if objective == "Instruction" else answers) if messages[turn].get("train", True)
    ]
    if not turns:
        raise BadRow(RejectCode.NO_TRAINABLE_TURN, "every answer to train is marked train: false or weight: 0")
    return turns
