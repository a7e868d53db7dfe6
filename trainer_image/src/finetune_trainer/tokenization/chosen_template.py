"""The chat templates of a labeler: the model's own, one of ours or a ConfigMap's, with the job's variables in them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.inputs.chat_template import RESERVED, ChatTemplateName
from finetune_trainer.tokenization.template import FALLBACK_TEMPLATE, ChatTemplate, TemplateFailure
from finetune_trainer.tokenization.tokenizer import DEFAULT, TokenizerFiles

CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
Value = str | int | float | bool | None

# Roles that a template has no words for are an error, so that no turn is lost.
_OTHER_ROLES = "{% else %}{{ raise_exception('this chat template has no turns of the role ' + message['role']) }}"
_LOOP = "{% for message in messages %}"
_END = "{% endif %}{% endfor %}"
_BUILT_IN: Mapping[ChatTemplateName, str] = {
    ChatTemplateName.CHATML: FALLBACK_TEMPLATE,
    ChatTemplateName.ALPACA: (
        f"{_LOOP}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ '### Response:\\n' + message['content'] + (eos_token or '') + '\\n\\n' }}"
        f"{_OTHER_ROLES}{_END}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
    ChatTemplateName.VICUNA: (
        f"{_LOOP}"
        "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
        "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + (eos_token or '') }}"
        f"{_OTHER_ROLES}{_END}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    ChatTemplateName.COMPLETION: (
        f"{_LOOP}"
        "{% if message['role'] in ('system', 'user') %}{{ message['content'] }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + (eos_token or '') }}"
        f"{_OTHER_ROLES}{_END}"
    ),
}


@dataclass(frozen=True, slots=True)
class TemplateChoice:
    """What a job sets of its chat template: the name of one of ours or the text of another, and variables."""

    name: ChatTemplateName | None = None
    text: str | None = None
    kwargs: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_template(self) -> bool:
        """Whether it replaces the templates of the model."""
        return self.name is not None or self.text is not None

    @property
    def text_sha256(self) -> str | None:
        """The digest that the lineage records of another template with the variables; None for one of ours."""
        return (
            None if self.text is None else hashlib.sha256(_with_defaults(self.text, self.kwargs).encode()).hexdigest()
        )


NO_CHOICE = TemplateChoice()


class UnusedVariables(TemplateFailure):
    """Raised if a job sets variables that the template does not read."""


def choose_templates(files: TokenizerFiles, choice: TemplateChoice) -> dict[str, str]:
    """Return the templates by name, with the choice's variables as defaults; raises TemplateFailure."""
    found = dict(files.templates)
    if choice.text is not None:
        found = {DEFAULT: choice.text}
    elif choice.name is not None or not found:
        found = {DEFAULT: _build(choice.name or ChatTemplateName.CHATML, files, is_chosen=choice.name is not None)}
    return {name: _with_defaults(text, choice.kwargs) for name, text in _require_used(found, choice.kwargs).items()}


def parse_value(text: str) -> Value:
    """Return the value of a variable: a number, a boolean or null if the text is one in JSON, else the text."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, str | int | float | None) else text


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _build(name: ChatTemplateName, files: TokenizerFiles, *, is_chosen: bool) -> str:
    text = _BUILT_IN[name]
    if is_chosen and name is ChatTemplateName.CHATML and CHATML_MARKS[1] in files.special_tokens:
        text = text.replace("(eos_token or '<|im_end|>')", "'<|im_end|>'")
    return ("{{ bos_token }}" if files.adds_bos else "") + text


def _require_used(templates: dict[str, str], kwargs: Mapping[str, str]) -> dict[str, str]:
    """Return the templates; raise if none of them reads one of the variables, which would have no effect."""
    if kwargs:
        read = {name for text in templates.values() for name in ChatTemplate(text, {}).list_variables()}
        if unknown := sorted(kwargs.keys() - read):
            own = ", ".join(sorted(one for one in read if one not in RESERVED and not one.endswith("_token")))
            problem = f"the chat template does not read {', '.join(unknown)}"
            raise UnusedVariables(f"{problem}: use its own variables ({own})" if own else f"{problem}: remove it")
    return templates


def _with_defaults(text: str, kwargs: Mapping[str, str]) -> str:
    """Return the template with the values of variables that a request does not set.

    The line break after them is removed by `trim_blocks`, with which chat templates are rendered, so that the rest
    begins at the start of a line as before.
    """
    sets = [
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(parse_value(value))} %}}{{% endif %}}\n"
        for name, value in sorted(kwargs.items())
    ]
    return "".join(sets) + text


def _literal(value: Value) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
