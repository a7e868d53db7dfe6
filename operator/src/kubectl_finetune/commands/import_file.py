"""`import`: convert a training file of another project to a manifest, and name what is not carried."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.manifest.yaml_document import write_document
from finetune_api.text.printable import printable
from finetune_client.errors import WrongUse
from finetune_client.manifest.fixes import FILL_IN
from finetune_client.manifest.suggestions import nearest
from kubectl_finetune.commands.validate import Problem, check_files, read_file
from kubectl_finetune.display.table import columns
from kubectl_finetune.importing.draft import Draft, NotCarried, Options, ToFillIn
from kubectl_finetune.importing.engine import convert
from kubectl_finetune.importing.files import read_training_file
from kubectl_finetune.importing.formats import FORMATS, choose_format
from kubectl_finetune.importing.rows import Format

LONGEST_NAME = 63


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    format: str
    manifest: dict[str, Any] | None
    """None if the file is refused."""
    text: str = ""
    problems: list[Problem] = field(default_factory=list)
    """What the validation finds, with the keys of the imported file."""
    fill_in: list[ToFillIn] = field(default_factory=list)
    not_carried: list[NotCarried] = field(default_factory=list)
    refused: list[NotCarried] = field(default_factory=list)

    @property
    def changes_training(self) -> bool:
        """Whether something that changes the training is lost."""
        return any(one.changes_training for one in self.not_carried)

    def to_wire(self) -> dict[str, Any]:
        """Return the result for -o json and yaml."""
        return {
            "format": self.format,
            "manifest": self.manifest,
            "problems": [asdict(one) for one in self.problems],
            "fillIn": [asdict(one) for one in self.fill_in],
            "notCarried": [_entry(one) for one in self.not_carried],
            "refused": [_entry(one) for one in self.refused],
        }

    def page(self) -> Iterable[str]:
        """Yield the parts of the report: what is lost, what is to be filled in, and the problems."""
        for title, found in (
            ("cannot be imported:", self.refused),
            ("not carried, changes the training:", [one for one in self.not_carried if one.changes_training]),
            (
                "not carried, without effect on the training:",
                [one for one in self.not_carried if not one.changes_training],
            ),
        ):
            if found:
                rows = [(str(one.line or "-"), one.key, one.value, _advice(one)) for one in found]
                yield f"{title}\n{columns(('LINE', 'KEY', 'VALUE', 'WHY, AND WHAT TO DO'), rows, 2).plain}"
        if self.fill_in:
            rows = [(one.field, one.key, one.value, one.fix) for one in self.fill_in]
            yield f"to fill in before it can run:\n{columns(('FIELD', 'KEY', 'VALUE', 'WHAT TO DO'), rows, 2).plain}"
        for problem in self.problems:
            yield problem.text()


def import_file(path: Path, asked: str, options: Options) -> Imported:
    """Convert a file; raise WrongUse if its format is not known."""
    if asked and asked not in FORMATS:
        near = nearest(asked, FORMATS)
        raise WrongUse(f"--from {asked}: must be one of {', '.join(FORMATS)}", f"did you mean {near}?" if near else "")
    name, text = read_file(path)
    file = read_training_file(name, text)
    form = choose_format(name, file.values, asked)
    draft = convert(file, form, options)
    if draft.refusals:
        return Imported(form.name, None, not_carried=draft.losses, refused=_distinct(draft.refusals))
    manifest = _manifest(draft)
    text = _header(draft, form) + write_document(manifest)
    return Imported(
        form.name,
        manifest,
        text,
        [
            _in_file(one, draft)
            for one in check_files([(name, text)]).problems
            if not one.value.strip('"').startswith(FILL_IN)
        ],
        draft.placeholders,
        _distinct(draft.losses),
    )


def _manifest(draft: Draft) -> dict[str, Any]:
    suffix = draft.file.values.get("suffix")
    name = draft.options.name or (suffix if isinstance(suffix, str) else "") or Path(draft.file.name).stem
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": draft.options.name or to_name(name)},
        "spec": draft.spec,
    }


def to_name(text: str) -> str:
    """Return the text as a Kubernetes name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:LONGEST_NAME].strip("-") or "imported"


def _header(draft: Draft, form: Format) -> str:
    """Return the comment of the manifest: its origin, and how the effective batch comes about."""
    hyper, resources = draft.spec.get("hyperparameters", {}), draft.spec.get("resources", {})
    batch, steps = hyper.get("perDeviceTrainBatchSize"), hyper.get("gradientAccumulationSteps")
    gpus = resources.get("numNodes", 1) * resources.get("gpusPerNode", 1)
    lines = [f"Imported from {printable(Path(draft.file.name).name)} ({form.title})."]
    if batch and steps:
        each = "sequences" if hyper.get("packing") == "Always" else "answers" if "rlhf" in draft.spec else "rows"
        product = batch * steps * max(1, gpus)
        lines.append(f"A step has {product} {each}: {batch} x {steps} (accumulation) x {max(1, gpus)} (GPUs).")
    return "".join(f"# {line}\n" for line in lines)


def _in_file(problem: Problem, draft: Draft) -> Problem:
    """Return the problem with line and key of the imported file."""
    field_path = problem.field.removeprefix("spec.")
    while field_path and field_path not in draft.origins:
        field_path = field_path.rpartition(".")[0]
    key = draft.origins.get(field_path, "")
    place = key.partition("[")[0].partition(".")[0].removesuffix(" (default)")
    line = draft.file.line((place,)) if place in draft.file.values else 1
    shown = f"{key}: {problem.field}" if key else problem.field
    return Problem(problem.file, line or 1, shown, problem.message, problem.value, problem.fix)


def _distinct(found: Sequence[NotCarried]) -> list[NotCarried]:
    return sorted(dict.fromkeys(found), key=lambda one: one.line)


def _entry(one: NotCarried) -> dict[str, Any]:
    entry = asdict(one)
    return {"changesTraining" if name == "changes_training" else name: value for name, value in entry.items()}


def _advice(one: NotCarried) -> str:
    return f"{one.reason}; {one.fix}" if one.fix else one.reason
