"""`validate`: check manifests without a cluster; each problem has file, line, field, value and fix."""

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.manifest.yaml_document import (
    FieldPath,
    FileError,
    YamlDocument,
    find_value,
    join_path,
    read_stream,
    read_text,
)
from finetune_api.manifest.yaml_faults import YamlError
from finetune_api.text.printable import printable
from finetune_client.errors import FineTuneError, WrongUse
from finetune_client.manifest.object_metadata import find_metadata_faults
from finetune_client.manifest.schema import ROOT, SPECS, UNKNOWN, Fault, find_faults, suggest_for_root
from finetune_client.manifest.suggestions import nearest

LONGEST = 80


@dataclass(frozen=True)
class Problem:
    """One thing to change in a file."""

    file: str
    line: int
    field: str
    message: str
    value: str = ""
    fix: str = ""
    column: int = 0
    """Column of a fault of YAML itself; 0 for a fault of a field, which its line shows."""

    def text(self) -> str:
        """Return the problem in the format of a compiler message."""
        place = f"{self.line}:{self.column}" if self.column else str(self.line)
        lines = [f"{self.file}:{place}: {self.field + ' ' if self.field else ''}{self.message}"]
        lines += [f"    value: {self.value}"] if self.value else []
        lines += [f"    fix: {self.fix}"] if self.fix else []
        return "\n".join(map(printable, lines))


@dataclass
class ValidationResult:
    """The jobs, releases, problems and notes of some files."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    releases: list[dict[str, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_wire(self) -> dict[str, Any]:
        """Return the result for -o json and yaml."""
        valid = [name_of(one) for one in (*self.jobs, *self.releases)] if not self.problems else []
        return {"valid": valid, "problems": [asdict(one) for one in self.problems], "notes": self.notes}


def name_of(manifest: dict[str, Any]) -> str:
    """Return the name in a manifest, or the prefix from which the API server generates one."""
    meta = manifest["metadata"]
    return str(meta.get("name") or meta.get("generateName"))


def check_files(sources: Iterable[tuple[str, str]]) -> ValidationResult:
    """Check every FineTuneJob and FineTuneRelease in the files, which are given as names and texts."""
    result = ValidationResult()
    found: list[tuple[str, YamlDocument]] = []
    first = ""
    for name, text in sources:
        first = first or name
        documents, faults = read_stream(text)
        problems = [_of_yaml(name, fault) for fault in faults]
        for document in itertools.chain.from_iterable(one.objects() for one in documents):
            kind = _kind_of(document, name, result)
            problems += _check(document, name, kind) if kind else []
            if kind == names.RELEASE_KIND:
                result.releases.append(document.value)
            elif kind:
                found.append((name, document))
        result.problems += sorted(problems, key=lambda one: one.line)
    result.jobs = [document.value for _, document in found]
    if not (found or result.releases or result.problems):
        result.problems.append(Problem(first, 1, "", f"no {names.KIND} found", fix=f"kind: {names.KIND}"))
    result.problems += _clashes(found)
    if not result.problems:
        result.notes += _parents_elsewhere(result.jobs)
    return result


def read_files(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield names and texts, each file once; a folder yields the YAML files in it and in the folders below."""
    seen: set[str] = set()
    for path in dict.fromkeys(paths):
        if str(path) == "-":
            yield read_file(path)
            continue
        inside = (
            sorted(one for one in path.rglob("*") if one.suffix in {".yaml", ".yml", ".json"} and one.is_file())
            if os.path.isdir(path)  # no error for a path that is too long, which is read_text's
            else [path]
        )
        if not inside:
            raise FineTuneError(f"{path} has no YAML files", "name a folder with .yaml, .yml or .json files")
        for one in inside:
            if (place := os.path.realpath(one)) in seen:
                continue
            seen.add(place)
            yield read_file(one)


def read_file(path: Path) -> tuple[str, str]:
    """Return name and text of a file, or of stdin for `-`."""
    if str(path) == "-":
        return "stdin", _read_stdin()
    try:
        return str(path), read_text(path)
    except FileError as error:
        raise FineTuneError(str(error), error.fix) from None


def _read_stdin() -> str:
    """Return the text of stdin, which is UTF-8 in every locale, as a file is."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise FineTuneError("stdin is not a text in UTF-8", "convert it to UTF-8") from None


def _of_yaml(file: str, fault: YamlError) -> Problem:
    message = f"is not YAML: {fault.problem}"
    return Problem(file, fault.line or 1, "", message, fix=fault.fix, column=fault.column)


def _kind_of(document: YamlDocument, file: str, result: ValidationResult) -> str:
    """Return the kind by which an object is checked; "" for another kind, which is allowed, and for a misspelt
    FineTuneJob, which is a problem."""
    value = document.value
    if not isinstance(value, dict):
        fix = f"write a {names.KIND}: kubectl finetune new"
        line, place = document.line(()), _field(document, ())
        result.problems.append(Problem(file, line, place, "is not an object", _shown(value), fix))
        return ""
    kind, group = str(value.get("kind", "")), str(value.get("apiVersion", "")).partition("/")[0]
    if kind in SPECS:
        return kind
    if group == names.GROUP or not kind:
        return nearest(kind, SPECS) or names.KIND
    if nearest(kind, [names.KIND]):
        fix, line = f"did you mean {names.KIND}?", document.line(("kind",))
        problem = Problem(file, line, _field(document, ("kind",)), "is not known", kind, fix)
        result.problems.append(problem)
        return ""
    result.notes.append(f"{file}: a {printable(kind)} was not checked")
    return ""


def _check(document: YamlDocument, file: str, kind: str) -> list[Problem]:
    faults = [*_head(document.value, kind), *find_metadata_faults(document.value.get("metadata"))]
    if "spec" in document.value and document.value["spec"] is not None:
        faults += find_faults(document.value["spec"], document.written, kind)
    else:
        fix = "kubectl finetune new writes a starter manifest" if kind == names.KIND else "docs/release.md has examples"
        faults.append(Fault(("spec",), "is missing", fix))
    return [*_twice(document, file), *(_problem(document, file, fault) for fault in faults)]


def _problem(document: YamlDocument, file: str, fault: Fault) -> Problem:
    written = document.written.get(fault.path)
    shown = printable(written) if written is not None else _shown(find_value(document.value, fault.path))
    return Problem(file, document.line(fault.path), _field(document, fault.path), fault.message, shown, fault.fix)


def _field(document: YamlDocument, path: FieldPath) -> str:
    return join_path((*document.path, *path))


def _twice(document: YamlDocument, file: str) -> Iterator[Problem]:
    for path, first in document.duplicates.items():
        message = f"is given twice, first in line {first}; kubectl uses the last"
        fault = Fault(path, message, "remove one of the two")
        yield replace(_problem(document, file, fault), column=document.place(path)[1])


def _head(value: dict[str, Any], kind: str) -> Iterator[Fault]:
    for key, wanted in (("apiVersion", names.API_VERSION), ("kind", kind)):
        if value.get(key) != wanted:
            yield Fault((key,), "is missing" if key not in value else "is not known", f"{key}: {wanted}")
    for key in value:
        if key not in ROOT:
            yield Fault((key,), UNKNOWN, suggest_for_root(key, kind))


def _clashes(found: Iterable[tuple[str, YamlDocument]]) -> Iterator[Problem]:
    """Yield conflicts between jobs: two that share a name or an output prefix."""
    owners: dict[tuple[str, ...], str] = {}
    for file, document in found:
        name = str(find_value(document.value, ("metadata", "name")) or "")
        space = str(find_value(document.value, ("metadata", "namespace")))
        uri = str(find_value(document.value, ("spec", "output", "uri")) or "").rstrip("/")
        for path, scope, value in ((("metadata", "name"), space, name), (("spec", "output", "uri"), "", uri)):
            key = (*path, scope, value)
            if value and key in owners:
                fault = Fault(path, f"is also that of {owners[key]}", "give each job its own")
                yield _problem(document, file, fault)
            owners.setdefault(key, name or str(find_value(document.value, ("metadata", "generateName"))))


def _parents_elsewhere(jobs: list[dict[str, Any]]) -> Iterator[str]:
    here = {job["metadata"].get("name") for job in jobs}
    for job in jobs:
        parent = ((job["spec"].get("lineage") or {}).get("parentRef") or {}).get("name")
        if parent and parent not in here:
            yield f"{name_of(job)} waits for {parent}, which is not in these files, to be complete"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    text = printable(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


PROGRAM = "finetune-trainer"
INSTALL = "in a clone of the operator's repository: pip install '.[check]'"


def check_rows(jobs: list[dict[str, Any]], files: list[str], out: Path | None, *, is_for_programs: bool = False) -> int:
    """Check local files in place of the job's `dataset.train`; return the exit code of the check.

    Its text goes to stderr if stdout has a document for programs.
    """
    if len(jobs) != 1:
        raise WrongUse(f"--rows needs one job, but the files have {len(jobs)}", "give the manifest of one job")
    sources = find_value(jobs[0], ("spec", "dataset", "train", "sources")) or ()
    if any(one.get("format") or one.get("columns") for one in sources):
        raise WrongUse(
            "--rows checks with one format and columns, but dataset.train.sources have their own",
            f"check the rows of each source: {PROGRAM} check-data FILE --objective … --format … --columns …",
        )
    if out:
        require_folder(out, "--rows-out")
    program, spec = find_program(), jobs[0]["spec"]
    command = [program, "check-data", *files, *options(spec), *(("--out", str(out)) if out else ())]
    stdout = sys.stderr if is_for_programs else None
    return subprocess.run(command, check=False, stdout=stdout).returncode  # noqa: S603 - our own program, without a shell


def require_folder(out: Path, option: str) -> None:
    """Raise WrongUse if the folder of an option cannot be made because there is a file, or because of its path."""
    try:
        existing = next(one for one in (out, *out.absolute().parents) if one.exists())
    except OSError as error:
        raise WrongUse(f"{option} {out} cannot be made: {error.strerror}", "name another folder") from None
    if not existing.is_dir():
        raise WrongUse(f"{option} {out} cannot be made: {existing} is a file", "name a folder")


def find_program() -> str:
    """Return the trainer's program, next to this one or on PATH, if it starts; without its libraries it does not."""
    for found in (str(Path(sys.executable).with_name(PROGRAM)), shutil.which(PROGRAM)):
        if found and Path(found).exists() and _starts(found):
            return found
    raise FineTuneError(f"checking rows needs {PROGRAM} with its libraries, which is not installed here", INSTALL)


def _starts(program: str) -> bool:
    command = [program, "check-data", "--help"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603 - as above


def options(spec: dict[str, Any]) -> list[str]:
    """Return the manifest's dataset settings as options of the program."""
    dataset = spec["dataset"]
    found = ["--job-fields", "--objective", str(spec["objective"])]
    if dataset.get("format"):
        found += ["--format", str(dataset["format"])]
    for known, own in (dataset.get("columns") or {}).items():
        found += ["--columns", f"{known}={own}"]
    if dataset.get("maxRejectedPercent") is not None:
        found += ["--max-rejected-percent", str(dataset["maxRejectedPercent"])]
    if dataset.get("systemMessage"):
        found += ["--system-message", str(dataset["systemMessage"])]
    return found
