"""The Modelfile, with which Ollama runs a GGUF file: the chat template in Go's form, and what ends an answer."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from finetune_trainer.data.rows import BadRow, Message

Role = Literal["system", "user", "assistant"]
Render = Callable[[Sequence[Message]], str]
"""The text that asks the model for the next answer."""
SYSTEM, USER, ANSWER = "qzsystemqz", "qzuserqz", "qzanswerqz"
"""Texts that no template contains."""
CANNOT_QUOTE = ("{{", "}}", '"""')


class Turns(NamedTuple):
    """What a template writes around each text, after the last one to `ask` for an answer, and its own system text."""

    before_system: str
    after_system: str
    before_user: str
    before_answer: str
    after_answer: str
    ask: str
    default: str


def build_modelfile(file: str, turns: Turns | None, stops: Sequence[str], *, is_chat: bool) -> str:
    """Return the Modelfile of a GGUF file next to it; without `turns`, Ollama chooses a template by the file's own."""
    lines = ["# ollama create NAME -f Modelfile; the other files of this folder: change FROM.", f"FROM ./{file}"]
    if not is_chat:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    elif turns is None:
        lines.append("# The chat template is in the file. If Ollama does not recognise it, write one as TEMPLATE.")
    else:
        lines.append(f'TEMPLATE """{_to_go(turns)}"""')
        if turns.default:
            lines.append(f'SYSTEM """{turns.default}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if stop.isprintable() and '"' not in stop]
    return "\n".join(lines) + "\n"


def find_turns(render: Render, bos: str) -> Turns | None:
    """Return what the template writes around each turn; None if that depends on more than the turn before.

    Ollama adds `bos` by itself. Every conversation of up to four turns must be the template's own text.
    """
    try:
        turns = _probe(lambda messages: render(messages).removeprefix(bos))
        is_same = turns is not None and all(
            _write(turns, messages) == render(messages).removeprefix(bos) for messages in _conversations()
        )
    except BadRow:
        return None
    if turns is None or not is_same or any(mark in piece for mark in CANNOT_QUOTE for piece in turns):
        return None
    return turns


def _probe(render: Render) -> Turns | None:
    user, answer, system = _message("user", USER), _message("assistant", ANSWER), _message("system", SYSTEM)
    first, _, ask = render([user]).partition(USER)
    begin, _, rest = render([user, answer, user]).partition(ANSWER)
    before_answer = begin.removeprefix(first).removeprefix(USER)
    between, _, _ = rest.partition(USER)
    before_system, found, rest = render([system, user]).partition(SYSTEM)
    if not found:
        return None
    after_system, _, _ = rest.partition(USER)
    before_user = _common_end(first, between, after_system)
    after_system = after_system.removesuffix(before_user)
    default = first.removesuffix(before_user)
    if default:
        if not (default.startswith(before_system) and default.endswith(after_system)):
            return None
        default = default.removeprefix(before_system).removesuffix(after_system)
    after_answer = between.removesuffix(before_user)
    return Turns(before_system, after_system, before_user, before_answer, after_answer, ask, default)


def _common_end(*texts: str) -> str:
    size = 0
    while all(len(text) > size for text in texts) and len({text[-1 - size] for text in texts}) == 1:
        size += 1
    return texts[0][len(texts[0]) - size :]


def _write(turns: Turns, messages: Sequence[Message]) -> str:
    """Return what Ollama writes by the template of `_to_go`."""
    if turns.default and messages[0]["role"] != "system":
        messages = [_message("system", turns.default), *messages]
    around = {
        "system": (turns.before_system, turns.after_system),
        "user": (turns.before_user, turns.before_answer),
        "assistant": ("", turns.after_answer),
    }
    written = [f"{around[one['role']][0]}{one['content']}{around[one['role']][1]}" for one in messages]
    return "".join(written).removesuffix(turns.before_answer) + turns.ask


def _to_go(turns: Turns) -> str:
    is_last = "eq (len (slice $.Messages $at)) 1"
    before = f"{{{{ if {is_last} }}}}{turns.ask}{{{{ else }}}}{turns.before_answer}{{{{ end }}}}"
    return (
        "{{ range $at, $_ := .Messages }}"
        f'{{{{ if eq .Role "system" }}}}{turns.before_system}{{{{ .Content }}}}{turns.after_system}'
        f'{{{{ else if eq .Role "user" }}}}{turns.before_user}{{{{ .Content }}}}'
        f"{turns.ask if turns.ask == turns.before_answer else before}"
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{turns.after_answer}'
        "{{ end }}{{ end }}"
    )


def _conversations() -> list[list[Message]]:
    turns = [_message("user", "What?"), _message("assistant", "This."), _message("user", "And then?")]
    system = _message("system", "Be brief.")
    return [turns[:1], turns, [system, *turns[:1]], [system, *turns]]


def _message(role: Role, content: str) -> Message:
    return Message(role=role, content=content)
