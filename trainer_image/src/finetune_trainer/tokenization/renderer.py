"""One chat template, probed once: render conversations, find their answers, and reject what it would lose."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.rows import BadRow, Function, Message, ToolCall
from finetune_trainer.tokenization.template import FAILS, ChatTemplate, TemplateFailure, is_plain, to_json
from finetune_trainer.tokenization.template_cache import TemplateCache, sentinel
from finetune_trainer.tokenization.tokenizer import TokenizerFiles, special_token_pattern
from finetune_trainer.tokenization.turn_spans import SENTINEL, Rendering, Span, Tools, TurnFinder

# Each answer is rendered with all that goes before it, so that work grows with turns times text: hostile rows end here.
MAX_TURNS = 512
MAX_RENDERED_CHARACTERS = 1 << 28
FIX = "set model.chatTemplate to one that writes it, or change the rows"
"""What to do about a turn that the template omits."""
FIX_FOR_TOOLS = "set model.chatTemplate to one that writes them, or remove them from the rows"
FIX_FOR_SEVERAL = (
    "set model.chatTemplate to one that writes all of them, or give each call, with its result, a turn of its own"
)
FIX_FOR_REFUSED = "change the row, or set model.chatTemplate to one that takes it"
LONGEST_FAILURE = 200
"""Characters of what a template raises."""
_USER = Message(role="user", content=sentinel(0))
_ASSISTANT = Message(role="assistant", content=sentinel(1))
_SYSTEM = Message(role="system", content=sentinel(2))
# In letters and digits, because a template may write tools and calls as Python does, which escapes the sentinels.
_MARKS = (("qx1jz", "qx2jz"), ("qx3jz", "qx4jz"))
"""The name and the argument of each call in a conversation that is rendered to find out what a template omits."""
_RESULT = Message(role="tool", content="qx5jz", tool_call_id="call00001", name=_MARKS[0][0])
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "qx6jz",
        "description": "Look up a key.",
        "parameters": {
            "type": "object",
            "properties": {"key": {"type": "string", "description": "The key."}},
            "required": ["key"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class FoundAnswers:
    """A conversation's renderings; several only if the template alters earlier answers."""

    renderings: list[Rendering]
    reasoning_lost: int = 0


class Renderer:
    """Renders with one template; raises BadRow with TEMPLATE_ERROR for what the template rejects or loses."""

    def __init__(self, source: str, files: TokenizerFiles) -> None:
        self._template = ChatTemplate(source, files.named_tokens)
        self._finder = TurnFinder(self._template, special_token_pattern(files.special_tokens), files.eos_token)
        self._cache = TemplateCache(self._template, self._finder)
        _detect_content_form(self._template)
        self._has_system_role = _shows(self._template, [_SYSTEM, _USER, _ASSISTANT], (2, 0, 1))
        self._has_tool_calls = _detect_arguments_form(self._template)
        one, two = _call_tools(_MARKS[:1]), _call_tools(_MARKS)
        self._omits_several_calls = _omits(self._template, [_USER, two], chain(*_MARKS))
        self._omits_results = {
            is_call: _omits(self._template, [_USER, answer, _RESULT, _ASSISTANT], (_RESULT["content"],))
            for is_call, answer in ((True, one), (False, _ASSISTANT))
        }
        self._omits_tools = {
            has_system: _omits(self._template, asked, (_TOOL["function"]["name"],), [_TOOL])
            for has_system, asked in ((True, [_SYSTEM, _USER]), (False, [_USER]))
        }
        self._answer_end = self._detect_answer_end()

    def fit_system(self, messages: list[Message]) -> tuple[list[Message], tuple[RepairCode, ...]]:
        """Return the conversation with its system text in the first prompt, where the template has no system role."""
        if self._has_system_role or [message["role"] for message in messages[:2]] != ["system", "user"]:
            return messages, ()
        first = Message(role="user", content=f"{messages[0]['content']}\n\n{messages[1]['content']}")
        return [first, *messages[2:]], (RepairCode.SYSTEM_MERGED,)

    def find(self, messages: list[Message], tools: Tools, turns: Sequence[int]) -> FoundAnswers:
        """Return the renderings in which these turns of a fitted conversation are answers; raises BadRow."""
        _refuse_endless(messages)
        try:
            found = self._find(messages, tools, turns)
            if any("untrained" in message for message in messages):
                found = replace(found, renderings=[self._mark_untrained(one, messages) for one in found.renderings])
            return found
        except TemplateFailure as failure:
            raise _explain(failure) from failure

    def render_ahead(self, rows: Iterable[tuple[Sequence[Message], Sequence[int]]]) -> None:
        """Render fitted conversations without tools at once, which makes `find` faster for them and their turns."""
        self._cache.render_ahead(
            (messages, turns) for messages, turns in rows if is_plain(messages) and not _is_endless(messages)
        )

    def find_everything(self, messages: list[Message], tools: Tools) -> FoundAnswers:
        """Return a fitted conversation as one rendering, trained up to the end of its last answer; raises BadRow.

        What the row excludes is untrained. Earlier answers are as the template writes them in the whole conversation.
        """
        _refuse_endless(messages)
        answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        marked = [turn for turn in answers if "untrained" in messages[turn] or not messages[turn].get("train", True)]
        try:
            *altered, whole = self._find(messages, tools, sorted({*marked, answers[-1]})).renderings
            if altered:
                raise TemplateFailure(
                    f"the chat template alters the answer of turn {altered[0].turns[0] + 1}, of which parts are "
                    "untrained, once others follow"
                )
            parts = self._mark_untrained(whole, messages).untrained
        except TemplateFailure as failure:
            raise _explain(failure) from failure
        excluded = [
            span for span, turn in zip(whole.spans, whole.turns, strict=True) if not messages[turn].get("train", True)
        ]
        everything = Rendering(whole.text, ((0, whole.spans[-1][1]),), whole.turns[-1:], (*parts, *excluded))
        lost = sum(_reasoning(messages[turn]) not in whole.text for turn in answers)
        return FoundAnswers([everything], reasoning_lost=lost)

    def render_prompt(self, messages: list[Message], tools: Tools) -> str:
        """Return the text that asks the model for the next answer of a fitted conversation; raises BadRow."""
        _refuse_endless(messages)
        try:
            return self._template.render(messages, tools, add_generation_prompt=True)
        except TemplateFailure as failure:
            raise _explain(failure) from failure

    def render_whole_prompt(self, messages: list[Message], tools: Tools) -> str:
        """`render_prompt`, with a BadRow where a text or the tools are left out."""
        text = self.render_prompt(messages, tools)
        try:
            self._refuse_omitted(messages, tools)
            _refuse_losses(text, messages, tools)
        except TemplateFailure as failure:
            raise _explain(failure) from failure
        return text

    def end_of_answer(self) -> str:
        """Return the text that the template writes after an answer to make the model stop."""
        asked = [Message(role="user", content="?"), Message(role="assistant", content=SENTINEL)]
        (rendering,) = self._finder.find(asked, None, [1])
        return rendering.text[rendering.text.rindex(SENTINEL) + len(SENTINEL) : rendering.spans[0][1]]

    def _detect_answer_end(self) -> str | None:
        try:
            return self.end_of_answer()
        except (TemplateFailure, ValueError):
            return None  # the template does not even show an answer: each row reports that

    def _find(self, messages: list[Message], tools: Tools, turns: Sequence[int]) -> FoundAnswers:
        if self._answer_end == "":
            raise TemplateFailure("the chat template writes no end of an answer, and there is no eos_token")
        if tools is None and is_plain(messages):
            renderings = self._cache.find(messages, turns)
            if renderings is not None:
                return FoundAnswers(renderings)
        self._refuse_omitted(messages, tools)
        renderings = self._finder.find(messages, tools, turns)
        for rendering in renderings:
            _refuse_losses(rendering.text, messages[: rendering.turns[-1] + 1], tools)
            _refuse_misplaced(rendering, messages)
        lost = sum(_count_lost_reasoning(rendering, messages) for rendering in renderings)
        return FoundAnswers(renderings, reasoning_lost=lost)

    def _refuse_omitted(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse what the template never writes: its text may be in the rendering all the same, because an answer
        repeats it."""
        calls = [len(message["tool_calls"]) for message in messages if "tool_calls" in message]
        if calls and not self._has_tool_calls:
            raise TemplateFailure(f"the chat template omits tool calls: {FIX_FOR_TOOLS}")
        if max(calls, default=0) > 1 and self._omits_several_calls:
            raise TemplateFailure(f"the chat template omits some of several tool calls in one turn: {FIX_FOR_SEVERAL}")
        is_call = False
        for turn, message in enumerate(messages, 1):
            if message["role"] == "assistant":
                is_call = "tool_calls" in message
            elif message["role"] == "tool" and self._omits_results[is_call]:
                raise TemplateFailure(f"the chat template omits or alters turn {turn} (tool): {FIX}")
        if tools and self._omits_tools[messages[0]["role"] == "system"]:
            asked = "\n".join(message["content"] for message in messages if message["role"] in ("system", "user"))
            if any(tool["function"]["name"] not in asked for tool in tools):
                raise TemplateFailure(f"the chat template omits the tools: {FIX_FOR_TOOLS}")

    def _mark_untrained(self, rendering: Rendering, messages: Sequence[Message]) -> Rendering:
        """Return the rendering with the untrained parts of its answers, which a template may have stripped."""
        marked: list[Span] = []
        for (start, end), turn in zip(rendering.spans, rendering.turns, strict=True):
            ranges = messages[turn].get("untrained", ())
            if not ranges:
                continue
            content = messages[turn]["content"]
            shown = content.strip()
            answer = rendering.text[start:end].removesuffix(self._answer_end or "")
            at = answer.find(shown)
            if at < 0 or at != answer.rfind(shown):
                raise TemplateFailure(
                    f"the chat template {'alters' if at < 0 else 'shows twice the text of'} the answer of turn "
                    f"{turn + 1}, of which parts are untrained"
                )
            first = start + at - content.index(shown)
            marked += [(max(first + begin, 0), first + stop) for begin, stop in ranges]
        return replace(rendering, untrained=tuple(marked))


def _explain(failure: TemplateFailure) -> BadRow:
    """Return the error of a row; what the template itself raises has no fix of its own."""
    said = str(failure)
    fix = f": {FIX_FOR_REFUSED}" if said.startswith(FAILS) else ""
    return BadRow(RejectCode.TEMPLATE_ERROR, said[:LONGEST_FAILURE] + fix)


def _is_endless(messages: Sequence[Message]) -> bool:
    turns = len(messages)
    return turns > MAX_TURNS or turns * sum(len(message["content"]) for message in messages) > MAX_RENDERED_CHARACTERS


def _refuse_endless(messages: Sequence[Message]) -> None:
    if _is_endless(messages):
        raise BadRow(RejectCode.TOO_LONG, f"{len(messages)} turns of this length are more than can be rendered")


def _refuse_losses(text: str, messages: Sequence[Message], tools: Tools) -> None:
    for turn, message in enumerate(messages, 1):
        if _answer(message) in text:
            continue
        if message["role"] == "tool" and to_json(message["content"]) in text:
            continue  # the templates of Llama 3.1 and gpt-oss write a result as a JSON string
        if "tool_calls" in message:
            raise TemplateFailure(
                f"the chat template omits or alters the text next to the tool calls of turn {turn}: set "
                "model.chatTemplate to one that writes both, or remove the text from the rows"
            )
        raise TemplateFailure(f"the chat template omits or alters turn {turn} ({message['role']}): {FIX}")
    for tool in tools or ():
        if tool["function"]["name"] not in text:
            raise TemplateFailure(f"the chat template omits the tools: {FIX_FOR_TOOLS}")


def _refuse_misplaced(rendering: Rendering, messages: Sequence[Message]) -> None:
    for (start, end), turn in zip(rendering.spans, rendering.turns, strict=True):
        shown = rendering.text[start:end]
        calls = messages[turn].get("tool_calls", ())
        if _answer(messages[turn]) not in shown or any(call["function"]["name"] not in shown for call in calls):
            raise TemplateFailure(f"the chat template does not render the answer of turn {turn + 1} in its place")


def _answer(message: Message) -> str:
    return message["content"].rpartition("</think>")[2].strip()


def _reasoning(message: Message) -> str:
    inline = message["content"].rpartition("</think>")[0].rpartition("<think>")[2]
    return (message.get("reasoning_content") or inline).strip()


def _count_lost_reasoning(rendering: Rendering, messages: Sequence[Message]) -> int:
    pairs = zip(rendering.spans, rendering.turns, strict=True)
    return sum(_reasoning(messages[turn]) not in rendering.text[start:end] for (start, end), turn in pairs)


def _detect_content_form(template: ChatTemplate) -> None:
    """Make the template take contents as text where it can, else as lists of parts."""
    for template.as_parts in (False, True):
        if _shows(template, [_USER, _ASSISTANT], (0, 1)):
            return
    template.as_parts = False


def _detect_arguments_form(template: ChatTemplate) -> bool:
    """Make the template take tool arguments as objects where it can, else as JSON; False when it drops tool calls."""
    for template.arguments_as_text in (False, True):
        if _shows(template, [_USER, _call_tools([(sentinel(3), sentinel(4))])], (3, 4)):
            return True
    template.arguments_as_text = False
    return False


def _call_tools(calls: Sequence[tuple[str, str]]) -> Message:
    """Return a turn that calls tools of these names, each with one argument."""
    called = [
        ToolCall(type="function", id=f"call{number:05d}", function=Function(name=name, arguments={"key": argument}))
        for number, (name, argument) in enumerate(calls, 1)
    ]
    return Message(role="assistant", content="", tool_calls=called)


def _omits(template: ChatTemplate, messages: Sequence[Message], marks: Iterable[str], tools: Tools = None) -> bool:
    """Return whether the template renders the conversation without one of these texts.

    One that refuses the conversation omits nothing: each such row reports that.
    """
    try:
        text = template.render(messages, tools, add_generation_prompt=messages[-1]["role"] == "user")
    except TemplateFailure:
        return False
    return any(mark not in text for mark in marks)


def _shows(template: ChatTemplate, messages: Sequence[Message], marks: Sequence[int]) -> bool:
    try:
        text = template.render(messages)
    except TemplateFailure:
        return False
    return all(sentinel(number) in text for number in marks)
