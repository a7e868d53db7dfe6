"""The progress as a line of the log, for people; `name=value` is also what logfmt parsers read."""

import json
from typing import Any

from tqdm import tqdm

from finetune_api.handoff import ProgressReport
from finetune_trainer.monitoring.bar import describe_stage

SHOWN_APART = {"display", "percent", "stage", "step", "totalSteps", "estimatedRemainingSeconds", "lastUpdatedTime"}


class LogLine:
    """Makes lines that begin as those of the logger, each with the values that are new since the line before."""

    def __init__(self) -> None:
        self._shown: dict[str, Any] = {}

    def describe(self, report: ProgressReport, share: str) -> str:
        """Return the state as a line; `share` is the completed share of the current stage, as text."""
        progress = report.progress.to_wire()
        values = {name: value for name, value in progress.items() if name not in SHOWN_APART}
        values |= report.metrics.to_wire()
        new = {name: value for name, value in values.items() if self._shown.get(name) != value}
        self._shown = values
        parts = [f"{progress['lastUpdatedTime']} INFO {describe_stage(report, share)}"]
        if "step" in progress:
            parts.append(f"step={progress['step']}/{progress.get('totalSteps', '?')}")
        if left := progress.get("estimatedRemainingSeconds"):
            parts.append(f"left={tqdm.format_interval(left)}")
        parts += [f"{name}={_in_one_word(value)}" for name, value in new.items()]
        return " ".join(parts)


def _in_one_word(value: Any) -> str:
    """Return a number as it is, and a text in quotes and with escapes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
