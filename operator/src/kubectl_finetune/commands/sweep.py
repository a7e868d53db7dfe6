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
from kubectl_finetune.commands.compare import different_measure
from kubectl_finetune.commands.validate import Problem, check_files

Place = tuple[str, ...]
Manifest = dict[str, Any]

MOST = 64
"""Variants of one sweep: each is a training."""
SUFFIX = "try"
OWN = (("output", "uri"), ("output", "hub"), ("output", "oci"))
"""Fields that each variant has of its own, or must not have, because all would write to one place."""
PUSHES = ("hub", "oci")
TRACKERS = ("mlflow", "wandb")
APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
KEPT_META = ("name", "namespace", "labels", "annotations")


@dataclass(frozen=True)
class Setting:
    """A field of the spec, and the values that it takes."""

    path: Place
    values: Sequence[Any]


@dataclass
class Sweep:
    """The variants, and what a user should know of them; with problems of the manifest there are none."""

    name: str = ""
    """Value of the variants' label, and the beginning of their names."""
    namespace: str = ""
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
        values = [document.value for document in read_documents(f"[{written}]")]
    except YamlError as error:
        raise WrongUse(f"--set {text}: the values are not YAML: {error.problem}", error.fix) from None
    if not all(path) or values in ([], [[]]) or len(values) > 1 or None in values[0]:
        raise WrongUse(f"--set {text} has no field or no value", "--set hyperparameters.learningRate=1e-4,2e-4")
    if "[" in name:
        raise WrongUse(f"--set {text}: an item of a list is no field", "give the whole list: --set 'FIELD=[A,B],[C]'")
    if any(path == own[: len(path)] or path[: len(own)] == own for own in OWN):
        raise WrongUse(f"--set {text}: each variant has a result of its own", "leave the field out")
    return Setting(path, values[0])


def make_sweep(source: tuple[str, str], settings: Sequence[Setting], suffix: str) -> Sweep:
    """Return a variant of the file's job for each combination of the values; raises WrongUse for settings that make
    too many, equal or invalid ones."""
    checked = check_files([source])
    if checked.problems:
        return Sweep(problems=checked.problems)
    if len(checked.jobs) != 1:
        raise WrongUse(f"{source[0]} has {len(checked.jobs)} FineTuneJobs", "give it a file with one")
    base = checked.jobs[0]
    if not base["metadata"].get("name"):
        raise WrongUse(f"{source[0]} has a job without metadata.name", "give it one, in place of generateName")
    paths = [setting.path for setting in settings]
    for first, second in itertools.permutations(paths, 2):
        if first == second[: len(first)]:
            raise WrongUse(f"{join_path(second)} is set twice", "give all values of a field in one --set")
    if (count := prod(len(setting.values) for setting in settings)) > MOST:
        raise WrongUse(
            f"these settings have {count:,} combinations, and a sweep has {MOST} at most", "try fewer values"
        )
    meta = base["metadata"]
    found = Sweep(f"{meta['name']}-{suffix}", meta.get("namespace") or "", notes=[*checked.notes])
    for number, values in enumerate(itertools.product(*(setting.values for setting in settings)), 1):
        variant = _variant(base, found.name, f"{suffix}-{number}", dict(zip(paths, values, strict=True)))
        _require_valid(variant, values, paths)
        found.variants.append(variant)
    _require_different(found.variants)
    found.notes += _notes(base, [one["spec"] for one in found.variants])
    return found


def _variant(base: Manifest, sweep: str, suffix: str, values: dict[Place, Any]) -> Manifest:
    """Return the job with these values, and with a name and a result of its own."""
    made: Manifest = {
        key: copy.deepcopy(base[key]) for key in ("apiVersion", "kind", "metadata", "spec") if key in base
    }
    meta = {key: value for key, value in made["metadata"].items() if key in KEPT_META}
    if "annotations" in meta:
        meta["annotations"] = {key: one for key, one in (meta["annotations"] or {}).items() if key != APPLIED}
    meta["labels"] = (meta.get("labels") or {}) | {LABEL_SWEEP: sweep}
    meta["name"] += f"-{suffix}"
    made["metadata"], output = meta, made["spec"]["output"]
    output["uri"] = f"{output['uri'].rstrip('/')}-{suffix}"
    for block in PUSHES:
        output.pop(block, None)
    for path, value in values.items():
        *above, last = path
        block = made["spec"]
        for name in above:
            block[name] = {} if block.get(name) is None else block[name]
            if not isinstance(block[name], dict):
                raise WrongUse(f"{join_path(path)} is unknown: {name} is no block", "kubectl explain finetunejob.spec")
            block = block[name]
        block[last] = copy.deepcopy(value)
    for tracker in TRACKERS:
        if isinstance(named := (made["spec"].get("tracking") or {}).get(tracker), dict):
            named.pop("runName", None)  # its default has the job's name
    return made


def _require_valid(variant: Manifest, values: Sequence[Any], paths: Sequence[Place]) -> None:
    """Raise with the first problem of a variant, and with the values that it has."""
    problems = check_files([(variant["metadata"]["name"], write_document(variant))]).problems
    if problems:
        chosen = ", ".join(f"{join_path(path)} {value}" for path, value in zip(paths, values, strict=True))
        first = problems[0]
        raise FineTuneError(f"with {chosen}, {first.field} {first.message}", first.fix)


def _require_different(variants: Sequence[Manifest]) -> None:
    for first, second in itertools.combinations(variants, 2):
        one, other = ({**made["spec"], "output": None} for made in (first, second))
        if one == other:
            names = f"{first['metadata']['name']} and {second['metadata']['name']}"
            raise WrongUse(f"{names} would be the same training", "give each value once")


def _notes(base: Manifest, specs: Sequence[Manifest]) -> list[str]:
    """Return what is left out, and why `compare` will not rank the jobs."""
    notes = [
        f"output.{block} is left out: every variant would push to the same place"
        for block in PUSHES
        if block in base["spec"]["output"]
    ]
    if not all(spec["dataset"].keys() & {"validation", "validationSplitPercent"} for spec in specs):
        notes.append("no rows are held out, so that compare cannot rank the jobs: set dataset.validationSplitPercent")
    elif why := different_measure(specs):
        notes.append(f"compare will not rank the jobs, because their held-out figures measure different things: {why}")
    if any((spec.get("evaluation") or {}).get("baseline") is False for spec in specs):
        notes.append("evaluation.baseline is false: without figures before the training there is nothing to rank by")
    return notes
