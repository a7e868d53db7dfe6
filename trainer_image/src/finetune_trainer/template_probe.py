"""Finds out, once for each template, what it can show: system turns, tool calls, contents as text or as parts."""

from collections.abc import Sequence

from finetune_trainer.data.rows import Function, Message, ToolCall
from finetune_trainer.skeletons import mark
from finetune_trainer.template import ChatTemplate, TemplateFailure

_USER = Message(role="user", content=mark(0))
_ASSISTANT = Message(role="assistant", content=mark(1))
_SYSTEM = Message(role="system", content=mark(2))


def choose_content_form(template: ChatTemplate) -> None:
    """Make the template take contents as text where it can, else as lists of parts."""
    for template.as_parts in (False, True):
        if _shows(template, [_USER, _ASSISTANT], (0, 1)):
            return
    template.as_parts = False


def has_system_role(template: ChatTemplate) -> bool:
    """Whether the template shows a system turn."""
    return _shows(template, [_SYSTEM, _USER, _ASSISTANT], (2, 0, 1))


def choose_arguments_form(template: ChatTemplate) -> bool:
    """Make the template take tool arguments as objects where it can, else as JSON; False when it drops tool calls."""
    call = ToolCall(type="function", id="call00001", function=Function(name=mark(3), arguments={"key": mark(4)}))
    message = Message(role="assistant", content="", tool_calls=[call])
    for template.arguments_as_text in (False, True):
        if _shows(template, [_USER, message], (3, 4)):
            return True
    template.arguments_as_text = False
    return False


def _shows(template: ChatTemplate, messages: Sequence[Message], marks: Sequence[int]) -> bool:
    try:
        text = template.render(messages)
    except TemplateFailure:
        return False
    return all(mark(number) in text for number in marks)
