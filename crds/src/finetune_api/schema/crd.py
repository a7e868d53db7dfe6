"""Types → structural schema → CRD YAML, its copy in the chart, and the field reference.

`python -m finetune_api.schema.crd [ROOT]` writes these and the chart's README; `--check` only compares and exits 1 on
drift.
"""

import argparse
import copy
import functools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune_api import conditions, names
from finetune_api.blocks import Block
from finetune_api.recipes import fill_in_defaults
from finetune_api.release import FineTuneReleaseSpec, FineTuneReleaseStatus
from finetune_api.schema import chart
from finetune_api.schema.descriptions import describe_fields
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

HEADER = "# Generated from crds/src/finetune_api by `make generate`; do not edit.\n"
KEPT = {
    "type", "description", "enum", "pattern", "format", "default", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "minProperties", "maxProperties", "items", "properties", "required",
    "additionalProperties", "anyOf",
}  # fmt: skip
RULES = "x-kubernetes-validations"
COLUMNS = [
    ("Phase", "string", ".status.phase", 0),
    ("Done", "integer", ".status.progress.percent", 0),
    ("Change", "string", ".status.evaluation.change", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Reason", "string", ".status.reason", 1),
    ("Progress", "string", ".status.progress.display", 1),
    ("Objective", "string", ".spec.objective", 1),
    ("Method", "string", ".status.resolved.method", 1),
    ("Train-Loss", "number", ".status.metrics.trainLoss", 1),
    ("Eval-Loss", "number", ".status.metrics.evalLoss", 1),
    ("Best", "number", ".status.metrics.bestEvalLoss", 1),
    ("Eval-Start", "number", ".status.metrics.baselineEvalLoss", 1),
    ("Before", "number", ".status.evaluation.before", 1),
    ("After", "number", ".status.evaluation.after", 1),
    ("Queue", "string", ".spec.scheduling.queueName", 1),
    ("Preempted", "integer", ".status.preemptions", 1),
]
"""Name, type, path and priority of each column: with priority 0, `kubectl get -A` fits 100 columns for namespaces and
names of 30 characters; the others are shown by `-o wide`. The losses from Train-Loss to Eval-Start are measured in the
training, Before and After on the model as it is served."""

SELECTABLE = (".status.phase", ".status.evaluation.verdict", ".spec.objective")
"""Fields that `kubectl get finetunejobs --field-selector` understands."""
RELEASE_COLUMNS = [
    ("Ready", "string", ".status.conditions[?(@.type=='Ready')].status", 0),
    ("Reason", "string", ".status.reason", 0),
    ("Since", "date", ".status.answering.releasedTime", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Answering", "string", ".status.answering.uri", 1),
    ("Digest", "string", ".status.answering.manifestSHA256", 1),
]


@dataclass(frozen=True)
class Resource:
    """A kind of this API group."""

    kind: str
    plural: str
    singular: str
    short_name: str
    description: str
    spec: type[Block]
    status: type[Block]
    columns: list[tuple[str, str, str, int]]
    selectable: tuple[str, ...] = ()
    chart_value: str = ""
    """The chart's value without which the kind is not installed."""


JOB = Resource(
    *(names.KIND, names.PLURAL, names.SINGULAR, names.SHORT_NAME),
    "FineTuneJob fine-tunes a pretrained language model and publishes the result to storage.",
    *(FineTuneJobSpec, FineTuneJobStatus, COLUMNS, SELECTABLE),
)
RELEASE = Resource(
    *(names.RELEASE_KIND, names.RELEASE_PLURAL, names.RELEASE_SINGULAR, names.RELEASE_SHORT_NAME),
    "FineTuneRelease lets a server answer with a published result of a FineTuneJob, and takes it back if it fails.",
    *(FineTuneReleaseSpec, FineTuneReleaseStatus, RELEASE_COLUMNS),
    chart_value=".Values.release.enabled",
)


def structural_schema(model: type[Block]) -> dict[str, Any]:
    """Return the JSON schema that Kubernetes requires: no `$ref`, null types, titles; exclusive bounds as booleans."""
    schema = _json_schema(model)
    return _structural(schema, schema.get("$defs", {}))


@functools.cache
def _json_schema(model: type[Block]) -> dict[str, Any]:
    return describe_fields(model.model_json_schema(by_alias=True, mode="validation"), model)


def _structural(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    node = _plain_map(_without_null(_inlined(copy.deepcopy(node), defs), defs))
    out = {key: value for key, value in node.items() if key in KEPT or key.startswith("x-kubernetes-")}
    if node.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in node:
            out[bound.lower()] = node[f"exclusive{bound}"]
            out[f"exclusive{bound}"] = True
    if "const" in node:
        out["enum"] = [node["const"]]
    if "description" in out:
        out["description"] = fill_in_defaults(" ".join(str(out["description"]).split()))
    if "properties" in out:
        out["properties"] = {key: _structural(value, defs) for key, value in out["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = _structural(out[key], defs)
        elif isinstance(out.get(key), bool):
            del out[key]
    if out.get("type") == "object" and isinstance(out.get("default"), dict):
        out["default"] = {}
    if out.get("default", ...) is None:
        del out["default"]
    return out


def _inlined(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """Replace `$ref` by its target; keys next to the reference (the field's own description) win, rules are added."""
    while "$ref" in node:
        target = copy.deepcopy(defs[node.pop("$ref").rsplit("/", 1)[-1]])
        rules = [*target.pop(RULES, []), *node.pop(RULES, [])]
        node = target | node | ({RULES: rules} if rules else {})
    return node


def _without_null(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """`X | None` becomes an optional X: the API server prunes a null, so that `has()` in CEL means "given"."""
    options = node.get("anyOf")
    if not options or node.get("x-kubernetes-int-or-string"):
        return node
    rest = [option for option in options if option.get("type") != "null"]
    if len(rest) == len(options) or len(rest) != 1:
        if any("x-kubernetes-int-or-string" in option for option in rest):
            return node
        raise ValueError(f"a union has no structural schema: {options}")
    node.pop("anyOf")
    return _inlined(copy.deepcopy(rest[0]), defs) | node


def _plain_map(node: dict[str, Any]) -> dict[str, Any]:
    """Turn the pattern of a map's keys into a rule, because Kubernetes has no `patternProperties`."""
    patterns = node.pop("patternProperties", None)
    if patterns is None:
        return node
    ((pattern, values),) = patterns.items()
    rule = {
        "rule": f"self.all(key, key.matches({json.dumps(pattern)}))",
        "message": f"each key must match {pattern}",
    }
    return node | {"additionalProperties": values, RULES: [rule]}


def build_crd(of: Resource = JOB) -> dict[str, Any]:
    """Return the CustomResourceDefinition as one object."""
    status = structural_schema(of.status) | {"default": {"observedGeneration": -1}}
    spec = structural_schema(of.spec)
    root = {
        "type": "object",
        "description": of.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this schema."},
            "kind": {"type": "string", "description": f"{of.kind}."},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }
    columns = [
        {"name": name, "type": kind, "jsonPath": path} | ({"priority": priority} if priority else {})
        for name, kind, path, priority in of.columns
    ]
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": root},
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
    }
    if of.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in of.selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{of.plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": of.kind,
                "listKind": f"{of.kind}List",
                "plural": of.plural,
                "singular": of.singular,
                "shortNames": [of.short_name],
                "categories": [names.CATEGORY],
            },
            "versions": [version],
        },
    }


def crd_yaml(of: Resource = JOB) -> str:
    """Return the CRD as YAML."""
    return HEADER + str(yaml.safe_dump(build_crd(of), sort_keys=False, width=120, allow_unicode=True))


def chart_yaml(of: Resource = JOB) -> str:
    """Return the CRD as a chart template; values decide whether it is installed and kept."""
    crd = build_crd(of)
    condition = f"and .Values.crds.enabled {of.chart_value}" if of.chart_value else ".Values.crds.enabled"
    body = yaml.safe_dump(crd["spec"], sort_keys=False, width=120, allow_unicode=True)
    indented = "".join(f"  {line}\n" for line in body.splitlines())
    return (
        HEADER + f"{{{{- if {condition} }}}}\n"
        "apiVersion: apiextensions.k8s.io/v1\n"
        "kind: CustomResourceDefinition\n"
        "metadata:\n"
        f"  name: {crd['metadata']['name']}\n"
        "  labels:\n"
        '    {{- include "finetune-operator.labels" . | nindent 4 }}\n'
        "  {{- if .Values.crds.keep }}\n"
        "  annotations:\n"
        "    helm.sh/resource-policy: keep\n"
        "  {{- end }}\n"
        "spec:\n" + indented + "{{- end }}\n"
    )


def reference_markdown() -> str:
    """Return the field reference of FineTuneJobs: their fields, rules and conditions."""
    lines = [
        *_fields(JOB, "job"),
        "### Conditions",
        "",
        "Each describes a state, not an event, and has the same meaning at any time. The last column is its polarity: "
        "the value of a job that goes well. A job shows all of them from its first reconcile on, except "
        "`QuotaReserved`, which is absent without a queue and at the end. "
        "[Every reason](../docs/troubleshooting.md) has an entry.",
        "",
        *conditions.table(),
        "",
    ]
    return "\n".join(lines)


def release_markdown() -> str:
    """Return the field reference of FineTuneReleases."""
    return "\n".join(_fields(RELEASE, "release"))


def _fields(of: Resource, noun: str) -> list[str]:
    """Return one table row for each field of spec and status, and the rules between fields."""
    spec, status = structural_schema(of.spec), structural_schema(of.status)
    explain = "kubectl explain" if of.chart_value else f"kubectl explain {of.singular}.spec --recursive"
    return [
        f"# {of.kind} reference",
        "",
        f"Generated from `crds/src/finetune_api` by `make generate`; do not edit. `{explain}` shows the same.",
        "",
        "## spec",
        "",
        "| field | type | meaning |",
        "| --- | --- | --- |",
        *(_row(path, node, required) for path, node, required in _walk(spec, "")),
        "",
        "### Rules between fields",
        "",
        f"The API server refuses a {noun} that breaks one, with this message and the field's path.",
        "",
        *sorted({f"- `{path or 'spec'}`: {_plain(rule['message'])}" for path, rule in _rules(spec, "")}),
        "",
        "## status",
        "",
        "| field | type | meaning |",
        "| --- | --- | --- |",
        *(_row(path, node, False) for path, node, _ in _walk(status, "")),
        "",
    ]


def _walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    required = set(node.get("required", []))
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        yield here, child, name in required
        yield from _walk(child, here)
        if isinstance(child.get("items"), dict):
            yield from _walk(child["items"], f"{here}[]")


def _rules(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, str]]]:
    for rule in node.get(RULES, []):
        yield (path + rule.get("fieldPath", "")).lstrip("."), rule
    for name, child in node.get("properties", {}).items():
        yield from _rules(child, f"{path}.{name}" if path else name)


def _row(path: str, node: dict[str, Any], required: bool) -> str:
    kind = " \\| ".join(f"`{value}`" for value in node["enum"]) if "enum" in node else _type(node)
    text = str(node.get("description", "")).replace("|", "\\|")
    return f"| `{path}`{' *' if required else ''} | {kind} | {text} |"


def _plain(text: str) -> str:
    """Escape text in which Markdown would see a link or emphasis, for example a pattern."""
    return re.sub(r"([\\[\]*_])", r"\\\1", text) if "^" in text else text


def _type(node: dict[str, Any]) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    if node.get("type") == "array":
        return f"list of {_type(node['items'])}"
    if isinstance(node.get("additionalProperties"), dict):
        return f"map to {_type(node['additionalProperties'])}"
    return str(node.get("format", node.get("type", "")))


def generated_files(root: Path) -> dict[Path, str]:
    """Return path and content of every generated file."""
    chart_folder = root / "helm" / "finetune-operator"
    return {
        root / "crds" / f"{names.PLURAL}.yaml": crd_yaml(),
        root / "crds" / "README.md": reference_markdown(),
        chart_folder / "templates" / "crd.yaml": chart_yaml(),
        root / "crds" / f"{names.RELEASE_PLURAL}.yaml": crd_yaml(RELEASE),
        root / "crds" / "finetunerelease.md": release_markdown(),
        chart_folder / "templates" / "crd-release.yaml": chart_yaml(RELEASE),
        chart_folder / "README.md": chart.readme(chart_folder),
    }


def main(argv: list[str] | None = None) -> int:
    """Write the generated files, or compare them; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path.cwd(), help="root of the repository")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on drift")
    arguments = parser.parse_args(argv)
    stale = [
        (path, text)
        for path, text in generated_files(arguments.root).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{'stale' if arguments.check else 'wrote'} {path}\n")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
