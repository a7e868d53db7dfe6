"""The options `--map` of a run, checked against its manifest, and local paths in place of URIs in texts."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.handoff import JobConfig
from finetune_api.status import PublishedJob
from finetune_trainer.data.patterns import WILDCARD
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.storage.local import parse_maps

_OUTPUT = re.compile(r"\b(?:spec\.)?output\.uri\b")


def read_maps(
    options: Iterable[str], jobs: Sequence[JobConfig], finished: Iterable[PublishedJob] = ()
) -> dict[str, Path]:
    """Return the maps of `--map`; raise InvalidConfig for one that no job uses, or whose path does not exist.

    Only a folder for results may be new.
    """
    outputs = {job.output_key() for job in jobs}
    uris = dict.fromkeys(uri for job in jobs for uri in _list_uris(job.spec.model_dump(by_alias=True)))
    inputs = [uri for uri in uris if not any(covers(output, uri) for output in outputs)]

    chosen = list(options)
    mapped = [option.partition("=")[0] for option in chosen]

    def may_be_new(uri: str) -> bool:
        longer = [one for one in mapped if len(one) > len(uri)]
        left = [one for one in inputs if not any(covers(other, one) for other in longer)]
        return _is_used(uri, outputs) and not any(covers(uri, one) for one in left)

    maps = parse_maps(chosen, may_be_new)
    if any(job.spec.rlhf and job.spec.rlhf.reward_model for job in jobs):
        return maps  # an adapter names its base, which the manifest does not
    results = outputs | {one.output_uri.rstrip("/") for one in finished}
    for uri, path in maps.items():
        if not (_is_used(uri, results) or any(covers(uri, one) for one in uris)):
            raise InvalidConfig(f"--map {uri}={path}: the manifest has no such URI: write one of {', '.join(uris)}")
    return maps


def covers(prefix: str, uri: str) -> bool:
    """Return whether the URI is the prefix or in it."""
    return f"{uri.rstrip('/')}/".startswith(f"{prefix.rstrip('/')}/")


def _is_used(uri: str, outputs: Collection[str]) -> bool:
    return any(covers(uri, output) or covers(output, uri) for output in outputs)


def _list_uris(node: Any) -> Iterator[str]:
    """Yield the URIs of a spec; of a pattern its folder, which is what a map can replace."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name == "uri" and isinstance(value, str):
            found = WILDCARD.search(value)
            yield value[: value.rindex("/", 0, found.start())] if found else value
        else:
            yield from _list_uris(value)


@dataclass(frozen=True)
class LocalNames:
    """What a user of `run` reads in place of mapped URIs; `mapped` are those of `--map`, which may have the output."""

    folders: Mapping[str, Path]
    mapped: Collection[str] = ()

    def replace_uris(self, text: str, output_key: str) -> str:
        """Return the text with local paths, and with `--output` unless a map has the output."""
        paths = {uri.rstrip("/"): path for uri, path in self.folders.items()}
        prefixes = "|".join(re.escape(uri) for uri in sorted(paths, key=len, reverse=True))
        if not any(covers(uri, output_key) for uri in self.mapped):
            text = _OUTPUT.sub("--output", text)
        if not prefixes:
            return text
        tail = r"(?:@[0-9a-f]{40})?(/[^\s,;:'\")]*)?(?![\w-]|\.\w)"
        return re.sub(f"({prefixes}){tail}", lambda found: _name(paths[found[1]], found[2] or ""), text)

    @contextmanager
    def in_errors(self, output_key: str) -> Iterator[None]:
        """Replace the URIs in the message of a failure."""
        try:
            yield
        except TrainerError as error:
            error.message = self.replace_uris(error.message, output_key)
            raise


def _name(path: Path, tail: str) -> str:
    if path.is_file():  # it was listed under its own name
        tail = tail.removeprefix(f"/{path.name}").removeprefix("/")
    return f"{path}{tail}"
