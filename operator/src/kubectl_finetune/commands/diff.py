"""`diff`: the specs and the results of two jobs, side by side."""

import json
from typing import Any

from rich.console import Group
from rich.text import Text

from finetune_client.cluster.job import Job, Object
from finetune_client.figures import NONE
from kubectl_finetune.display.table import columns, heading

RESULTS = ("metrics", "evaluation", "dataset", "earlyStopping", "resolved")
COUNTS = ("phase", "reason", "attempts", "runs", "failures", "preemptions", "activeSeconds")
NAMES = ("uri", "config", "split")
Pair = tuple[Any, Any]


def differences(left: Job, right: Job) -> dict[str, dict[str, Pair]]:
    """Return the fields that differ, by dotted path; a missing field is None."""
    return {
        "spec": _unequal(left.spec, right.spec),
        "result": _unequal(_result(left), _result(right)),
    }


def _result(job: Job) -> Object:
    status = job.status.to_wire()
    return {name: status[name] for name in (*COUNTS, *RESULTS) if name in status}


def _unequal(left: Object, right: Object) -> dict[str, Pair]:
    flat_left, flat_right = flat_fields(left), flat_fields(right)
    paths = list(dict.fromkeys([*flat_left, *flat_right]))
    pairs = {path: (flat_left.get(path), flat_right.get(path)) for path in paths}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def flat_fields(value: Any, path: str = "") -> dict[str, Any]:
    """Return the fields of a block by dotted path; sources of rows by what names them."""
    if isinstance(value, list) and value and all(isinstance(one, dict) and "uri" in one for one in value):
        return _flat_sources(value, path)
    if not isinstance(value, dict) or not value:
        return {path: value} if path else {}
    found: dict[str, Any] = {}
    for key, child in value.items():
        found |= flat_fields(child, f"{path}.{key}" if path else key)
    return found


def _flat_sources(sources: list[dict[str, Any]], path: str) -> dict[str, Any]:
    """Return the fields of each source of rows, by what names it in both jobs, whatever its place in the list."""
    found: dict[str, Any] = {}
    for one in sources:
        name = " ".join(str(one[key]) for key in NAMES if key in one)
        found |= flat_fields(
            {key: value for key, value in one.items() if key not in NAMES} or "used", f"{path}[{name}]"
        )
    return found


def difference_page(left: Job, right: Job) -> Group:
    """Return both parts as tables."""
    found = differences(left, right)
    parts: list[Text] = []
    for title, pairs in found.items():
        parts += [*([Text("")] if parts else []), heading(title.capitalize())]
        rows = [(path, *map(show_value, pair), _change(pair)) for path, pair in pairs.items()]
        parts.append(
            columns(("FIELD", left.name, right.name, "CHANGE"), rows, 2) if rows else Text("  no difference", "dim")
        )
    return Group(*parts)


def show_value(value: Any) -> str:
    """Return a value as a cell of a table shows it."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _change(pair: Pair) -> str:
    """Return the difference of two numbers in percent of the left one."""
    left, right = pair
    if any(isinstance(one, bool) or not isinstance(one, int | float) for one in pair) or not left:
        return ""
    return f"{100 * (right - left) / abs(left):+.1f} %"
