"""`diff --rows`: which rows two jobs do not share, from the rows that they published."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from rich.console import Group
from rich.text import Text

from finetune_api.handoff import Artifact
from finetune_client.cluster.job import NEWER, Job
from finetune_client.errors import FineTuneError
from finetune_client.storage import Storage
from kubectl_finetune.display.table import columns, heading

SOURCE = b',"_source":{"file":'
"""What precedes a row's place, which the trainer writes at the end of its line."""
SHOWN = 5
"""Rows of one kind that are shown; `-o json` has up to `LISTED`."""
LISTED = 1000
EXCERPT = 100
PARTS = {"trained": Artifact.TRAIN_ROWS, "heldOut": Artifact.VALIDATION_ROWS}
TITLES = {"trained": "trained", "heldOut": "held out"}


class PublishedRow(NamedTuple):
    """A row as JSON, and the file and the line (from 1) that it was read from."""

    content: bytes
    file: str
    line: int

    @property
    def digest(self) -> bytes:
        """Return what identifies the content, wherever it was read from: 16 bytes, because rows can be millions."""
        return hashlib.blake2b(self.content, digest_size=16).digest()


@dataclass(frozen=True)
class RowsOfJob:
    """The rows that one job published: a file for each of `PARTS` that it has."""

    name: str
    files: Mapping[str, Path]

    def read(self, part: str) -> Iterator[PublishedRow]:
        """Yield the rows of a part in their order; raise FineTuneError for a line of another form."""
        if part not in self.files:
            return
        with self.files[part].open("rb") as lines:
            for line in lines:
                content, _, source = line.rpartition(SOURCE)
                try:
                    place = json.loads(b'{"file":' + source.rstrip()[:-1])
                    yield PublishedRow(content + b"}", place["file"], place["line"])
                except (ValueError, KeyError, TypeError):
                    problem = f"{PARTS[part]} of {self.name} has a form that this version cannot read"
                    raise FineTuneError(problem, NEWER) from None

    def index(self, part: str) -> dict[bytes, str]:
        """Return the file of each different row, by the row's digest."""
        found: dict[bytes, str] = {}
        for row in self.read(part):
            found.setdefault(row.digest, sys.intern(row.file))
        return found

    def list_other(self, part: str, known: Container[bytes]) -> list[dict[str, Any]]:
        """Return the first different rows that are not known, in the order of training."""
        found: dict[bytes, dict[str, Any]] = {}
        for row in self.read(part):
            if len(found) == LISTED:
                break
            if row.digest not in known:
                found.setdefault(row.digest, {"file": row.file, "line": row.line, "row": json.loads(row.content)})
        return list(found.values())


def compare_rows(left: Job, right: Job, open_storage: Callable[[Job], Storage]) -> tuple[dict[str, Any], Group]:
    """Return the difference of the rows that two jobs published, for programs and as a page."""
    with TemporaryDirectory(prefix="finetune-diff-") as folder:
        first, second = (
            fetch_rows(job.name, open_storage(job), Path(folder) / side)
            for side, job in (("first", left), ("second", right))
        )
        found = differing_rows(first, second)
    return found, rows_page(left.name, right.name, found)


def fetch_rows(name: str, storage: Storage, folder: Path) -> RowsOfJob:
    """Download the rows that a job published, verified by its manifest."""
    known = set(storage.names())
    files = {part: storage.download(folder, path)[0] for part, path in PARTS.items() if path in known}
    if not files:
        raise FineTuneError(f"{name} published no rows: it has trained on those of no dataset", "leave out --rows")
    return RowsOfJob(name, files)


def differing_rows(left: RowsOfJob, right: RowsOfJob) -> dict[str, Any]:
    """Return which rows both jobs have and which only one; a row that is repeated counts once.

    `trainedAndHeldOut` are the rows that one job trained on and the other one was measured with.
    """
    known = {part: (left.index(part), right.index(part)) for part in PARTS}
    found: dict[str, Any] = {}
    for part, (first, second) in known.items():
        both = Counter(file for digest, file in first.items() if digest in second)
        only_first = Counter(file for digest, file in first.items() if digest not in second)
        only_second = Counter(file for digest, file in second.items() if digest not in first)
        files = sorted({*both, *only_first, *only_second})
        found[part] = {
            "files": [
                {"file": one, "both": both[one], "onlyFirst": only_first[one], "onlySecond": only_second[one]}
                for one in files
            ],
            "onlyFirst": left.list_other(part, second),
            "onlySecond": right.list_other(part, first),
        }
    (trained, other_trained), (held_out, other_held_out) = known["trained"], known["heldOut"]
    found["trainedAndHeldOut"] = len(trained.keys() & other_held_out.keys()) + len(
        held_out.keys() & other_trained.keys()
    )
    return found


def rows_page(left: str, right: str, found: dict[str, Any]) -> Group:
    """Return the counts by file as a table, and the first rows that only one job has."""
    counts = [
        (TITLES[part], one["file"], *(f"{one[key]:,}" for key in ("both", "onlyFirst", "onlySecond")))
        for part in PARTS
        for one in found[part]["files"]
    ]
    parts = [Text(""), heading("Rows"), columns(("ROWS", "FILE", "BOTH", f"ONLY {left}", f"ONLY {right}"), counts, 2)]
    for part in PARTS:
        for job, key in ((left, "onlyFirst"), (right, "onlySecond")):
            if found[part][key]:
                total = sum(one[key] for one in found[part]["files"])
                parts += [Text(""), heading(f"Only {TITLES[part]} by {job}: {total:,}")]
                parts += [columns(("PLACE", "ROW"), [_shorten(one) for one in found[part][key][:SHOWN]], 2)]
    if mixed := found["trainedAndHeldOut"]:
        sentence = f"{mixed:,} rows were trained by one job and held out by the other: do not compare their losses."
        parts += [Text(""), Text(sentence)]
    return Group(*parts)


def _shorten(one: dict[str, Any]) -> tuple[str, str]:
    text = json.dumps(one["row"], ensure_ascii=False)
    return f"{one['file']}:{one['line']}", text if len(text) <= EXCERPT else f"{text[: EXCERPT - 1]}…"
