"""`describe`: a one-page summary of a job, with the reason for its state."""

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from finetune_api.evaluation import CorrectStatus, EvaluationStatus, Verdict
from finetune_api.names import ConditionType, Phase
from finetune_api.output import RegistryPush
from finetune_api.status import KeptCheckpoint
from finetune_client.cluster.client import read_event_time
from finetune_client.cluster.job import Job, Object
from finetune_client.figures import NONE, duration, number
from kubectl_finetune.commands.progress import loss_pairs
from kubectl_finetune.commands.timeline import moments
from kubectl_finetune.display.table import between, columns, fields, heading, size

EVENTS = 10
_WITHOUT_GAIN = {Verdict.WORSE, Verdict.NO_MEASURABLE_DIFFERENCE}


def job_page(job: Job, events: Sequence[Object], now: datetime, options: str = "") -> Group:
    """Return the page; `options` are those of its commands."""
    parts: list[tuple[str, Text]] = [
        ("", _head(job, options)),
        ("In training", fields(loss_pairs(job), 2)),
        ("Dataset", fields(_dataset(job), 2)),
        ("Sources", _sources(job)),
        ("Timeline", _timeline(job, now)),
        ("Result", fields(result_pairs(job), 2)),
        ("Conditions", _conditions(job, now)),
        ("Events", _events(events, now)),
        ("Next", _next(job, options)),
    ]
    shown: list[RenderableType] = []
    for title, body in parts:
        if body.plain.strip():
            shown += [*([Text(""), heading(title)] if title else []), body]
    return Group(*shown)


def verdict_pairs(job: Job) -> list[tuple[str, str]]:
    """Return the verdict on the result, and what was measured for it."""
    found = job.status.evaluation
    return [
        ("Verdict", _verdict(job)),
        ("Change", _change(found)),
        ("Correct", _shares(found.answers, found.answers.rows, "held-out rows") if found and found.answers else ""),
        ("Ability", _shares(found.ability, found.ability.questions, "questions") if found and found.ability else ""),
    ]


def _verdict(job: Job) -> str:
    """Return the verdict on the result; an ended job without one was not evaluated."""
    found = job.status.evaluation
    return (found and found.verdict) or (Verdict.NOT_EVALUATED.value if job.has_ended else "")


def _change(found: EvaluationStatus | None) -> str:
    """Return what was measured before and after training."""
    if found is None or found.before is None or found.after is None:
        return ""
    text = f"{(found.metric or '').lower()} {number(found.before)} → {number(found.after)}".strip()
    text = f"{found.change}: {text}" if found.change else text
    if found.difference_low is not None and found.difference_high is not None:
        low, high = number(found.difference_low), number(found.difference_high)
        text += f", 95 % interval of the difference {low} to {high}"
    text += f", {number(found.rows)} held-out rows" if found.rows else ""
    return f"{text}, measured on the {found.served_as.lower()}" if found.served_as else text


def _shares(found: CorrectStatus, count: int | None, what: str) -> str:
    """Return the share of correct answers before and after training."""
    if found.before_percent is None or found.after_percent is None:
        return ""
    text = f"{found.before_percent:.1f} % → {found.after_percent:.1f} % of {number(count)} {what}"
    low, high = found.difference_low_points, found.difference_high_points
    if low is None or high is None:
        return text
    return f"{text}, 95 % interval {low:+.1f} to {high:+.1f} percentage points"


def _fix(job: Job, options: str) -> str:
    """Return where to find what to change for a result that is not better; a failed job's reason has it already."""
    if job.phase != Phase.SUCCEEDED or _verdict(job) not in _WITHOUT_GAIN:
        return ""
    return f"see the recommendations of the report: kubectl finetune report {job.name} -n {job.namespace}{options}"


def _head(job: Job, options: str) -> Text:
    """Return the summary: verdict, reason and fix first."""
    status, model = job.status, job.field("model.uri")
    progress, resolved = status.progress, status.resolved
    revision = status.lineage and status.lineage.base_model_revision
    method = str((resolved and resolved.method) or job.field("tuning.method") or "")
    reason = resolved and resolved.method_reason
    counted = ("attempts", "runs", "failures", "preemptions")
    done = progress.display if progress and progress.display else ""
    if progress and progress.step is not None and progress.total_steps:
        done += f", step {progress.step} of {progress.total_steps}"
    if progress and progress.estimated_remaining_seconds and not job.has_ended:
        done += f", {duration(progress.estimated_remaining_seconds)} left"
    return fields(
        [
            *verdict_pairs(job),
            ("Phase", job.phase),
            ("Deleting", job.deletion),
            ("Reason", status.reason or ""),
            ("Why", job.why),
            ("Fix", _fix(job, options)),
            ("Name", f"{job.namespace}/{job.name}"),
            ("Progress", done),
            ("Stage", (progress and progress.stage) or ""),
            ("Note", (progress and progress.note) or ""),
            ("Objective", str(job.field("objective") or "")),
            ("Model", f"{model}@{revision}" if revision else str(model or "")),
            ("Method", f"{method} ({reason})" if reason else method),
            ("Data", _data(job)),
            ("Output", str(job.field("output.uri") or "")),
            ("Queue", str(job.field("scheduling.queueName") or "")),
            ("Parent", str(job.field("lineage.parentRef.name") or "")),
            ("Counted", ", ".join(f"{name} {count}" for name in counted if (count := getattr(status, name)))),
            ("Ran", duration(status.active_seconds) if status.active_seconds else ""),
        ]
    )


def _dataset(job: Job) -> list[tuple[str, str]]:
    found = job.status.dataset
    if found is None:
        return []
    codes = ", ".join(f"{code} {count}" for code, count in (found.rejected_rows_by_code or {}).items())
    rejected = f"{found.rejected_rows or 0}" + (f" ({codes})" if codes else "")
    return [
        ("Rows", number(found.rows)),
        ("Accepted", number(found.accepted_rows)),
        ("Rejected", rejected),
        ("Trained on", number(found.train_rows)),
        ("Held out", number(found.validation_rows)),
        ("Cut to maxLength", number(found.truncated_rows) if found.truncated_rows else ""),
    ]


def _data(job: Job) -> str:
    """Return the URI of the rows, or of each source."""
    sources = job.field("dataset.train.sources")
    if not isinstance(sources, list):
        return str(job.field("dataset.train.uri") or "")
    return ", ".join(str(one.get("uri") or "") for one in sources if isinstance(one, dict))


def _sources(job: Job) -> Text:
    """Return what each source of training rows brings; nothing with a single one."""
    found = (job.status.dataset and job.status.dataset.sources) or []
    tokens = sum(one.trained_tokens or 0 for one in found)
    rows = [
        (
            " ".join(name for name in (one.uri, one.config, one.split) if name),
            number(one.accepted_rows),
            number(one.rejected_rows),
            number(one.train_rows),
            number(one.trained_tokens),
            f"{100 * (one.trained_tokens or 0) / tokens:.1f} %" if tokens else NONE,
        )
        for one in found
    ]
    header = ("SOURCE", "ACCEPTED", "REJECTED", "TRAINED ON", "TRAINED TOKENS", "SHARE OF TOKENS")
    return columns(header, rows, 2) if rows else Text("")


def result_pairs(job: Job) -> list[tuple[str, str]]:
    """Return the published files and the results of the gates."""
    found, verdict = job.status.artifacts, job.status.evaluation
    gates = (
        [
            ("Gate", verdict.gate),
            ("Full model", verdict.merge_gate),
            ("GGUF", verdict.gguf_gate),
            ("Not met", verdict.gate_message),
        ]
        if verdict
        else []
    )
    pairs = [(name, value or "") for name, value in gates if value not in {"NotConfigured", "NotAsked"}]
    if found is None:
        return pairs
    return [
        *pairs,
        ("Adapter", found.adapter_uri or ""),
        ("Model", found.merged_uri or ""),
        ("GGUF files", found.gguf_uri or ""),
        *((f"Step {one.step}", _kept(one)) for one in found.kept_checkpoints or ()),
        ("Report", found.report_uri or ""),
        ("Lineage", found.lineage_uri or ""),
        ("Manifest", found.manifest_uri or ""),
        ("SHA-256 of it", found.manifest_sha256 or ""),
        ("Size", size(found.size_bytes)),
        ("Everything under", found.uri or ""),
        ("Hub", (found.hub.url or f"not pushed to {found.hub.repo}: see condition HubPushed") if found.hub else ""),
        ("Registry", _describe_registry(found.oci)),
    ]


def _kept(one: KeptCheckpoint) -> str:
    """Return where a kept checkpoint is, with its figure in the training."""
    figures = (("loss", one.eval_loss), ("reward", one.eval_reward))
    return one.uri + "".join(f" ({name} {value:.4g})" for name, value in figures if value is not None)


def _describe_registry(push: RegistryPush | None) -> str:
    if push is None:
        return ""
    return push.reference or f"not pushed to {push.repository}: see condition RegistryPushed"


def _timeline(job: Job, now: datetime) -> Text:
    rows = [(*row[:-1], _briefly(job, row[-1])) for row in (one.row() for one in moments(job, now))]
    return columns(("TIME", "TOOK", "WHAT", "DETAIL"), rows, 2)


def _conditions(job: Job, now: datetime) -> Text:
    rows = [
        (one.type, one.status, one.reason, between(one.last_transition_time, now), _briefly(job, one.message))
        for one in job.status.conditions or []
    ]
    # The type `Failed` of a condition that is False is not a failure.
    return columns(("TYPE", "STATUS", "REASON", "FOR", "MESSAGE"), rows, 2, uncoloured=[0]) if rows else Text()


def _briefly(job: Job, message: str) -> str:
    """Return the message, or where it is if it is the job's, which the top of the page has."""
    return "see Why" if message == job.status.message else message


def _events(events: Sequence[Object], now: datetime) -> Text:
    rows = []
    for event in events[-EVENTS:]:
        stamp = read_event_time(event)
        age = between(datetime.fromisoformat(stamp), now) if stamp else NONE
        count = (event.get("series") or {}).get("count") or event.get("count") or 1
        age += f" (x{count})" if count > 1 else ""
        rows.append((age, str(event.get("type", "")), str(event.get("reason", "")), str(event.get("message", ""))))
    return columns(("AGE", "TYPE", "REASON", "MESSAGE"), rows, 2) if rows else Text()


def _next(job: Job, options: str) -> Text:
    """Return the command that fits the job's phase."""
    own = f"{job.name} -n {job.namespace}{options}"
    is_checked = job.status.is_true(ConditionType.VALIDATED)
    accepted = job.status.condition(ConditionType.ACCEPTED)
    had_no_pod = not is_checked and accepted is not None and accepted.status != "True"
    log = f"kubectl finetune logs {own}" + ("" if is_checked else " --preflight")
    commands = {
        Phase.SUCCEEDED.value: f"kubectl finetune report {own}",
        Phase.FAILED.value: "" if had_no_pod else log,
        Phase.SUSPENDED.value: f"kubectl finetune resume {own}" if job.field("suspend") else "",
        Phase.TRAINING.value: f"kubectl finetune progress {own}",
        Phase.EVALUATING.value: f"kubectl finetune progress {own}",
        Phase.MERGING.value: f"kubectl finetune logs {own} -f",
        Phase.PREFLIGHT.value: f"kubectl finetune logs {own} --preflight -f",
    }
    return Text("  " + command if (command := commands.get(job.phase)) else "")
