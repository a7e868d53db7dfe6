"""Load a tokenizer and its chat templates from a model's directory, as transformers would, without transformers."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT, TOOL_USE = "default", "tool_use"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
TOKEN_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", TEMPLATE_FILE,
    "chat_template.json",
)  # fmt: skip
# Reasoning marks belong to answers even where a tokenizer lists them among its special tokens.
_REASONING_MARK = re.compile(r"</?think(ing)?>")
_END = ""  # the key of a node at which a token ends
_ID_DIGITS = 18
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


Tree = dict[str, "Tree"]


class TokenizerUnavailable(Exception):  # noqa: N818 - the state of the model's directory
    """Raised when the directory holds no usable `tokenizer.json`."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The text files of a model's directory: the tokenizer, its named tokens and its chat templates, if any.

    `adds_bos`: the tokenizer itself begins every text with its BOS token; `vocabulary` is the number of embeddings in
    `config.json`, if it has one.
    """

    tokenizer: Tokenizer
    named_tokens: dict[str, Any]
    templates: dict[str, str]
    special_tokens: tuple[str, ...]
    adds_bos: bool
    vocabulary: int | None

    @property
    def template(self) -> str | None:
        """The template of conversations without tools."""
        return self.templates.get(DEFAULT)

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""
        return self.named_tokens.get("eos_token")

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins a text."""
        return self._id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The id of the token that ends a text."""
        return self._id("eos_token")

    def _id(self, name: str) -> int | None:
        token = self.named_tokens.get(name)
        return None if token is None else self.tokenizer.token_to_id(token)


def load_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Read the directory of a model or tokenizer; raises TokenizerUnavailable."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TokenizerUnavailable(f"{directory.name} has no tokenizer.json")
    tokenizer = _load(path)
    config = _read_json(directory / "tokenizer_config.json")
    token_map = _read_json(directory / "special_tokens_map.json")
    named = _named_tokens(config, token_map)
    adds_bos = _adds_bos(tokenizer, config, named.get("bos_token"))
    _add_missing_tokens(tokenizer, [config, token_map], named, _read_json(directory / "added_tokens.json"))
    return TokenizerFiles(
        tokenizer,
        named,
        _templates(directory, config),
        _collect_special_tokens(tokenizer, named),
        adds_bos,
        _vocabulary(_read_json(directory / "config.json")),
    )


def tokenizer_sha256(directory: Path) -> str:
    """Return one digest over the files that decide about tokens and templates."""
    digest = hashlib.sha256()
    paths = [directory / name for name in TOKEN_FILES]
    for path in [*paths, *sorted((directory / TEMPLATE_FOLDER).glob("*.jinja"))]:
        if path.is_file():
            digest.update(f"{path.relative_to(directory)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _load(path: Path) -> Tokenizer:
    """Load the tokenizer and encode one letter: some faults of the file cause a panic at the first text."""
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
    except (ValueError, RecursionError) as error:
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


def _adds_bos(tokenizer: Tokenizer, config: dict[str, Any], bos: str | None) -> bool:
    """Return whether the tokenizer adds BOS, by the config, else by trying."""
    bos_id = None if bos is None else tokenizer.token_to_id(bos)
    if bos_id is None:
        return False
    asked = config.get("add_bos_token")
    return asked if isinstance(asked, bool) else tokenizer.encode("a").ids[:1] == [bos_id]


def _add_missing_tokens(
    tokenizer: Tokenizer, configs: list[dict[str, Any]], named: dict[str, Any], ids: dict[str, Any]
) -> None:
    """Add the tokens that are only in the files next to `tokenizer.json`, in the order of their ids."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing: dict[str, AddedToken] = {}
    for token in (*_listed_tokens(configs, ids), *_declared_special_tokens(configs, named)):
        if token.content and token.content not in known:
            token.special = token.special or token.content in named.values()
            missing.setdefault(token.content, token)
    if missing:
        tokenizer.add_tokens(list(missing.values()))


def _listed_tokens(configs: list[dict[str, Any]], ids: dict[str, Any]) -> Iterator[AddedToken]:
    listed = configs[0].get("added_tokens_decoder")
    by_id = listed.items() if isinstance(listed, dict) else [(number, text) for text, number in ids.items()]
    for _, token in sorted(by_id, key=lambda item: _parse_id(item[0])):
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            flags = {flag: token[flag] for flag in _TOKEN_FLAGS if isinstance(token.get(flag), bool)}
            yield AddedToken(token["content"], **flags)
        elif isinstance(token, str):
            yield AddedToken(token, normalized=True)


def _parse_id(value: object) -> int:
    """Return a token's id, or -1 for what is none."""
    text = value if isinstance(value, str) else str(value) if type(value) is int else ""
    return int(text) if text.isdecimal() and len(text) <= _ID_DIGITS else -1


def _declared_special_tokens(configs: list[dict[str, Any]], named: dict[str, Any]) -> Iterator[AddedToken]:
    for name in TOKEN_NAMES:
        if name in named:
            yield AddedToken(named[name], special=True, normalized=False)
    for config in configs:
        for key in ("extra_special_tokens", "additional_special_tokens"):
            listed = config.get(key)
            if isinstance(listed, dict):
                listed = list(listed.values())
            for token in listed if isinstance(listed, list) else ():
                text = token.get("content") if isinstance(token, dict) else token
                if isinstance(text, str):
                    yield AddedToken(text, special=True, normalized=False)


def _templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """Return the templates by name: those in separate files, else those in the configs."""
    files = sorted((directory / TEMPLATE_FOLDER).glob("*.jinja"))
    found = {path.stem: _read_text(path) for path in files if _is_file_name(path.stem)}
    if (directory / TEMPLATE_FILE).is_file():
        found[DEFAULT] = _read_text(directory / TEMPLATE_FILE)
    if not found:
        given = config.get("chat_template") or _read_json(directory / "chat_template.json").get("chat_template")
        found = templates_by_name(given)
    if len(found) == 1:
        return {DEFAULT: next(iter(found.values()))}
    if found and DEFAULT not in found:
        raise TokenizerUnavailable(f"of its chat templates ({', '.join(sorted(found))}) none is the default")
    return found


def templates_by_name(given: Any) -> dict[str, str]:
    """Return the templates of a `chat_template` in a tokenizer's configuration, by name."""
    if isinstance(given, str):
        return {DEFAULT: given}
    pairs = list(given.items()) if isinstance(given, dict) else []
    if isinstance(given, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in given if isinstance(entry, dict)]
    return {name: text for name, text in pairs if _is_file_name(name) and isinstance(text, str)}


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w-]{1,64}", name) is not None


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except ValueError as error:
        raise TokenizerUnavailable(f"{path.name} cannot be read: {error}") from error


def _collect_special_tokens(tokenizer: Tokenizer, named: dict[str, Any]) -> tuple[str, ...]:
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    special.update(named[name] for name in TOKEN_NAMES if name in named)
    return tuple(sorted((token for token in special if token and not _REASONING_MARK.fullmatch(token)), key=len))[::-1]


def _vocabulary(config: dict[str, Any]) -> int | None:
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        size = part.get("vocab_size")
        if isinstance(size, int):
            return size
    return None


def special_token_pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern for the longest of these tokens; without tokens it matches nothing.

    The tokens become a tree, because Python would try one after the other at each occurrence of their first character.
    """
    tree: Tree = {}
    for token in filter(None, tokens):
        at = tree
        for sign in token:
            at = at.setdefault(sign, {})
        at[_END] = {}
    try:
        return re.compile(_write(tree) or "(?!)")
    except RecursionError:  # tokens that nest in each other hundreds of times
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))


def _write(tree: Tree) -> str:
    chain = ""
    while len(tree) == 1 and _END not in tree:
        ((sign, tree),) = tree.items()
        chain += re.escape(sign)
    branches = [re.escape(sign) + _write(after) for sign, after in tree.items() if sign != _END]
    if not branches:
        return chain
    return f"{chain}(?:{'|'.join(branches)}){'?' if _END in tree else ''}"
