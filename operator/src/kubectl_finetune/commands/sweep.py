"""`sweep`: variants of one job, each with other values of some fields, as manifests."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from finetune_api.manifest.yaml_document import join_path, read_documents, write_document
from finetune_api.manifest.yaml_faults import YamlError
from finetune_api.names import LABEL_SWEEP
from finetune_client.errors import FineTuneError, WrongUse
from kubectl_finetune.commands.validate import Problem, check_files

Place = tuple[str, ...]
Manifest = dict[str, Any]

MOST = 64
"""Variants of one sweep: each is a training."""
RESULT: Place = ("output", "uri")
PUSHES = ("hub", "oci")
"""Blocks of `output` that name one place, to which every variant would push."""


@dataclass(frozen=True)
class Setting:
    """A field of the spec, and the values that it takes."""

    path: Place
    values: Sequence[Any]


@dataclass
class Sweep:
    """The variants, and what a user should know of them; with problems of the manifest there are none."""

    name: str = ""
    variants: list[Manifest] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the manifests as one file."""
        return "---\n".join(map(write_document, self.variants))


def parse_setting(text: str) -> Setting:
    """Read `hyperparameters.learningRate=1e-4,2e-4`, whose values are read as kubectl reads them."""
    name, _, written = text.partition("=")
    path = tuple(name.strip().removeprefix("spec.").split("."))
    try:
        values = read_documents(f"[{written}]")[0].value
    except YamlError as error:
        raise WrongUse(f"--set {text}: the values are not YAML: {error.problem}", error.fix) from None
    if not all(path) or not values or None in values:
        raise WrongUse(f"--set {text} has no field or no value", "--set hyperparameters.learningRate=1e-4,2e-4")
    if path[:2] in {RESULT, ("output",)}:
        raise WrongUse(f"--set {text}: each variant has a result of its own", "leave the field out")
    return Setting(path, values)


def make_sweep(source: tuple[str, str], settings: Sequence[Setting]) -> Sweep:
    """Return a variant of the file's job for each combination of the values; raises WrongUse for settings that make
    too many or invalid ones."""
    checked = check_files([source])
    if checked.problems:
        return Sweep(problems=checked.problems)
    if len(checked.jobs) != 1 or not checked.jobs[0]["metadata"].get("name"):
        raise WrongUse(f"{source[0]} must have one FineTuneJob, with metadata.name", "give it a file of its own")
    base = checked.jobs[0]
    paths = [setting.path for setting in settings]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise WrongUse(f"{join_path(twice[0])} is set twice", "give all its values in one --set")
    if (count := prod(len(setting.values) for setting in settings)) > MOST:
        raise WrongUse(
            f"these settings have {count:,} combinations, and a sweep has {MOST} at most", "try fewer values"
        )
    found = Sweep(base["metadata"]["name"], notes=_notes(base, paths))
    for number, values in enumerate(itertools.product(*(setting.values for setting in settings)), 1):
        found.variants.append(_variant(base, number, dict(zip(paths, values, strict=True))))
        _require_valid(found.variants[-1], values, paths)
    return found


def _variant(base: Manifest, number: int, values: dict[Place, Any]) -> Manifest:
    """Return the job with these values, and with a name and a result of its own."""
    made = copy.deepcopy(base)
    made.pop("status", None)
    meta, output = made["metadata"], made["spec"]["output"]
    meta["labels"] = (meta.get("labels") or {}) | {LABEL_SWEEP: meta["name"]}
    meta["name"] += f"-try-{number}"
    output["uri"] = f"{output['uri'].rstrip('/')}-try-{number}"
    for block in PUSHES:
        output.pop(block, None)
    for path, value in values.items():
        *above, last = path
        block = made["spec"]
        for name in above:
            if not isinstance(block.setdefault(name, {}), dict):
                raise WrongUse(f"{join_path(path)} is unknown: {name} is no block", "kubectl explain finetunejob.spec")
            block = block[name]
        block[last] = value
    return made


def _require_valid(variant: Manifest, values: Sequence[Any], paths: Sequence[Place]) -> None:
    """Raise WrongUse with the first problem of a variant, and with the values that it has."""
    problems = check_files([(variant["metadata"]["name"], write_document(variant))]).problems
    if problems:
        chosen = ", ".join(f"{join_path(path)} {value}" for path, value in zip(paths, values, strict=True))
        first = problems[0]
        raise FineTuneError(f"with {chosen}, {first.field} {first.message}", first.fix)


def _notes(base: Manifest, paths: Sequence[Place]) -> list[str]:
    notes = [
        f"output.{block} is left out: every variant would push to the same place"
        for block in PUSHES
        if block in base["spec"]["output"]
    ]
    dataset = base["spec"]["dataset"]
    if "validation" not in dataset and not dataset.get("validationSplitPercent"):
        notes.append("no rows are held out, so that compare cannot rank the jobs: set dataset.validationSplitPercent")
    if ("hyperparameters", "seed") in paths and "validationSplitPercent" in dataset:
        notes.append("each seed holds out other rows, so that losses differ by these too: set dataset.validation")
    return notes
