"""The sandbox that renders chat templates as transformers does, with bounds on loops and on repeated text.

What it cannot bound ends with its process, see `template.py`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

HEAD_BYTES = 4
"""Length of a message between a process and the child that renders for it, before the message."""
VARIABLES = "variables"
"""A request for the names of a template's variables, in place of messages."""
MAX_TEXT_CHARACTERS = 64 << 20
MAX_REPEATED_CHARACTERS = 1 << 20
MAX_RANGE_ITEMS = 100_000
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
# A width of a thousand or more, or one that is a variable, in a %-format; nested or wide fields in a {}-format.
_WIDE_PERCENT = re.compile(r"%(?:\([^)]*\))?[^%a-zA-Z]*(?:\*|[0-9]{4})")
_WIDE_BRACES = re.compile(r"\{[^{}]*(?:\{|[0-9]{4})")


FAILS = "the chat template fails: "
"""Begins the message of what a template raises."""


class TemplateFailure(Exception):  # noqa: N818 - the row's failure, turned into TEMPLATE_ERROR
    """Raised if a template rejects a conversation, fails on it, or exceeds a limit."""


class SandboxedTemplate:
    """A compiled chat template with its variables."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        self._source = source
        self._variables = variables
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateFailure(f"the chat template does not compile: {error}") from error

    def list_variables(self) -> list[str]:
        """Return the names that the template reads and does not set before, without those of the environment."""
        return sorted(meta.find_undeclared_variables(self._environment.parse(self._source)))

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, *, add_generation_prompt: bool
    ) -> str:
        """Return the conversation as text; raises TemplateFailure."""
        self._environment.range_items_left = MAX_RANGE_ITEMS
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            ):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_TEXT_CHARACTERS:
                    raise TemplateFailure("the output of the chat template has no end")
        except jinja2.TemplateError as error:
            raise TemplateFailure(f"{FAILS}{error}") from error
        except (
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            IndexError,
            ArithmeticError,
            RecursionError,
            MemoryError,
        ) as error:
            raise TemplateFailure(f"{FAILS}{type(error).__name__}: {error}") from error
        return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    """The environment that transformers gives to chat templates, with bounds on loops and on repeated text."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.range_items_left = MAX_RANGE_ITEMS
        del self.filters["center"]
        self.filters["format"] = _format
        self.filters["tojson"] = to_json
        self.globals["range"] = self._range
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Refuse attributes that pad a text to any width, in addition to those that every sandbox refuses."""
        return attr not in _PADDING and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Refuse `str.format` with fields that pad to any width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def format_narrow(*arguments: Any, **named: Any) -> str:
            _refuse_wide(_WIDE_BRACES, value.__self__)
            return wrapped(*arguments, **named)

        return format_narrow

    def _range(self, *arguments: int) -> range:
        items = range(*arguments)
        self.range_items_left -= len(items)
        if self.range_items_left < 0:
            raise SecurityError(f"a template may use range() for at most {MAX_RANGE_ITEMS} items")
        return items

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse operators whose result is far larger than their operands."""
        if operator == "**":
            raise SecurityError("a template may not use ** here")
        if operator == "%" and isinstance(left, str):
            _refuse_wide(_WIDE_PERCENT, left)
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if hasattr(text, "__len__") and len(text) * int(times) > MAX_REPEATED_CHARACTERS:
                    raise SecurityError("a template may not repeat so much")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """Accept `{% generation %}` and ignore it: the trained text is found without it."""

    tags = {"generation"}  # noqa: RUF012 - the library declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _refuse_wide(wide: re.Pattern[str], text: str) -> None:
    if wide.search(text):
        raise SecurityError("a template may not pad a text so much")


def _format(value: Any, *arguments: Any, **named: Any) -> str:
    text = str(value)
    _refuse_wide(_WIDE_PERCENT, text)
    return text % (named or arguments)


def _strftime_now(format: str) -> str:  # noqa: A002 - the name that templates may use
    return datetime.now().strftime(format)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as the filter of transformers does, which escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
