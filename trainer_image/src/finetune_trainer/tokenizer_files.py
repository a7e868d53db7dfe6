"""Loads a tokenizer and its chat template from a model's directory, without transformers."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Reasoning marks belong to answers even where a tokenizer lists them among its special tokens.
_REASONING_MARK = re.compile(r"</?think(ing)?>")


class TokenizerUnavailable(Exception):  # noqa: N818 - the state of the model's directory
    """Raised when the directory holds no usable `tokenizer.json`."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a model's directory says about text: the tokenizer, its named tokens and its chat template, if any."""

    tokenizer: Tokenizer
    named_tokens: dict[str, Any]
    template: str | None
    control_tokens: tuple[str, ...]

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""
        return self.named_tokens.get("eos_token")

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins a text."""
        bos = self.named_tokens.get("bos_token")
        return None if bos is None else self.tokenizer.token_to_id(bos)

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer itself begins every text with its BOS token."""
        ids = self.tokenizer.encode("a").ids
        return self.bos_id is not None and ids[:1] == [self.bos_id]


def load_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Read the directory of a model or tokenizer; raises TokenizerUnavailable."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TokenizerUnavailable(f"{directory.name} has no tokenizer.json")
    tokenizer = _load(path)
    config = _read_json(directory / "tokenizer_config.json")
    named = _named_tokens(config, _read_json(directory / "special_tokens_map.json"))
    return TokenizerFiles(tokenizer, named, _template(directory, config), _control_tokens(tokenizer, named))


def _load(path: Path) -> Tokenizer:
    """The tokenizer, tried out on one letter: some faults of the file show as a panic at the first text."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode("a")
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # tokenizers raises nothing narrower, and its panics are no Exception
        raise TokenizerUnavailable(f"tokenizer.json cannot be read: {error}") from error
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise TokenizerUnavailable(f"{path.name} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _named_tokens(*configs: dict[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for config in configs:
        for name, value in config.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                named.setdefault(name, text)
    return named


def _template(directory: Path, config: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    template = config.get("chat_template") or _read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        by_name = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = by_name.get("default")
    return template if isinstance(template, str) else None


def _control_tokens(tokenizer: Tokenizer, named: dict[str, Any]) -> tuple[str, ...]:
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    special.update(named[name] for name in TOKEN_NAMES if name in named)
    return tuple(sorted((token for token in special if token and not _REASONING_MARK.fullmatch(token)), key=len))[::-1]
