"""finetune_report.md, curves.png and the adapter's model card, from one record of the run."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from finetune_api.handoff import Artifact, JobConfig
from finetune_api.objectives import Objective
from finetune_api.status import DatasetStatus, EarlyStoppingStatus, EvaluationStatus, Resolved
from finetune_trainer.data.rows import SENTENCES
from finetune_trainer.hub import hub_name, is_hub_uri
from finetune_trainer.report import text
from finetune_trainer.report.curves import curve_table, draw_curves
from finetune_trainer.report.data_tables import file_table, length_table
from finetune_trainer.report.held_out import loss_table, reward_table, terms_of
from finetune_trainer.report.recommendations import Evidence, recommend
from finetune_trainer.report.record import (
    Answer,
    History,
    Machine,
    Measured,
    MergeCheck,
    RewardedAnswer,
    SampleStats,
    ScoreCheck,
    ScoredPair,
)
from finetune_trainer.validation import CLEAR_MARGIN, LARGEST_MEAN_KL, LEAST_AGREEMENT, largest_loss

TEMPLATES = Path(__file__).parent / "templates"
PREVIEW_CHARACTERS = 1200
TAGS = {
    Objective.DPO: ["dpo"],
    Objective.KTO: ["kto"],
    Objective.REWARD_MODEL: ["reward-model"],
    Objective.RLHF: ["rlhf"],
    Objective.DOMAIN_ADAPTATION: ["continued-pretraining"],
}
"""A model card's tags, by which a hub finds models trained alike."""


@dataclass(frozen=True)
class RunRecord:
    """Everything that the report says."""

    config: JobConfig
    settings: Resolved
    dataset: DatasetStatus
    samples: SampleStats
    previews: list[list[tuple[str, bool]]]
    history: History
    baseline: Measured | None
    final: Measured | None
    best_step: int | None
    early_stopping: EarlyStoppingStatus | None
    trainable_parameters: int
    answers: list[Answer]
    merge: MergeCheck | None
    machine: Machine
    score_check: ScoreCheck | None = None
    scored_pairs: list[ScoredPair] = field(default_factory=list)
    rewarded_answers: list[RewardedAnswer] = field(default_factory=list)
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What preflight wrote about the rows: `dataset/summary.json`."""
    evaluation: EvaluationStatus = field(default_factory=EvaluationStatus)
    """What the gates say."""

    @property
    def last_step(self) -> int:
        """The last optimiser step."""
        return self.history.train[-1].step if self.history.train else 0

    @property
    def start(self) -> str:
        """What the model is called as it was before the training."""
        return "initial adapter" if self.config.spec.tuning.initial_adapter else "base model"

    @property
    def rows_per_step(self) -> float:
        """How many rows a step holds on average, which packing makes another figure than that of its sequences."""
        return self.samples.samples * (self.settings.num_train_epochs or 0.0) / max(self.settings.total_steps or 0, 1)

    def evidence(self) -> Evidence:
        """What the recommendations look at."""
        stopped = self.early_stopping is not None and bool(self.early_stopping.stopped)
        return Evidence(
            self.settings, self.samples, self.history, self.baseline, self.final, stopped, self.machine, self.dataset
        )


def write_report(record: RunRecord, directory: Path) -> None:
    """Writes the report and its picture into the result folder, and the model card beside the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    draw_curves(record.history, record.best_step, directory / Artifact.CURVES, record.config.spec.objective)
    context = _context(record)
    (directory / Artifact.REPORT).write_text(_render("finetune_report.md.j2", context), encoding="utf-8")
    for folder in (Artifact.ADAPTER, Artifact.MERGED):
        if (directory / folder).is_dir():
            card = _render("model_card.md.j2", context | {"folder": folder.value})
            (directory / folder / "README.md").write_text(card, encoding="utf-8")


def _render(name: str, context: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown, not HTML: the filters below escape it
    )
    environment.filters |= {
        "inline": text.inline,
        "code": text.code,
        "block": text.block,
        "number": text.number,
        "percent": text.percent,
        "size": text.size,
        "shell": shlex.quote,
    }
    return environment.get_template(name).render(context)


def _context(record: RunRecord) -> dict[str, Any]:
    storage = record.config.spec.storage
    endpoint = storage.endpoint if storage else None
    objective = record.config.spec.objective
    return {
        "run": record,
        "spec": record.config.spec,
        "output": record.config.output_key(),
        "fetch_base": _fetch_base(record.config, endpoint),
        "batch_of": _batch_of(record),
        "endpoint": f" --endpoint-url {shlex.quote(endpoint)}" if endpoint else "",
        "recommendations": recommend(record.evidence()),
        "is_reward_model": objective is Objective.REWARD_MODEL,
        "terms": terms_of(objective),
        "unit": terms_of(objective).unit.value,
        "held_out_table": loss_table(objective, record.start, record.baseline, record.final)
        or reward_table(record.start, record.history),
        "tags": TAGS.get(objective, ["sft"]),
        "file_table": file_table(record.summary),
        "length_table": length_table(record.summary, record.settings.max_length),
        "format_table": _count_table(record.dataset.format, ("format", "rows")),
        "reject_table": _code_table(record.dataset.rejected_by_code),
        "repair_table": _code_table(record.dataset.repaired_by_code),
        "settings_table": _settings_table(record.settings),
        "curve_table": curve_table(record.history, objective),
        **_merge_context(record.merge),
        "previews": [_marked(pieces) for pieces in record.previews],
    }


def _merge_context(merge: MergeCheck | None) -> dict[str, Any]:
    """Each candidate's figures, and what is wrong with those that may not be published."""
    if merge is None:
        return {}
    rows = [
        [
            text.inline(one.name),
            text.number(one.loss, 5),
            text.number(one.mean_kl, 2),
            text.percent(one.top1_agreement),
            text.percent(one.clear_agreement) if one.clear_agreement is not None else "-",
            "published" if one is merge.chosen else "withheld" if its else "not chosen",
        ]
        for one, its in zip(merge.candidates, merge.faults, strict=True)
        if one.loss is not None and one.mean_kl is not None and one.top1_agreement is not None
    ]
    header = ["made from", "loss", "KL", "same first choice", "clear", ""]
    return {
        "merge_table": text.table(header, rows) if rows else "",
        "merge_faults": [(one.name, its) for one, its in zip(merge.candidates, merge.faults, strict=True) if its],
        "largest_loss": largest_loss(merge.trained_loss),
        "largest_kl": LARGEST_MEAN_KL,
        "least_agreement": LEAST_AGREEMENT,
        "clear_margin": CLEAR_MARGIN,
    }


def _batch_of(record: RunRecord) -> str:
    """What the loop counts as a row."""
    if record.config.spec.objective is Objective.RLHF:
        return "answers"
    return "sequences" if record.settings.packing else "rows"


def _fetch_base(config: JobConfig, endpoint: str | None) -> str:
    """The command that copies the base model to a folder of that name."""
    model = config.spec.model
    if is_hub_uri(model.uri):
        revision = f" --revision {shlex.quote(model.revision)}" if model.revision else ""
        return f"hf download {shlex.quote(hub_name(model.uri))}{revision} --local-dir base"
    where = f" --endpoint-url {shlex.quote(endpoint)}" if endpoint else ""
    return f"aws{where} s3 cp --recursive {shlex.quote(model.uri)} base"


def _count_table(counts: dict[str, int] | None, header: tuple[str, str]) -> str:
    return text.table(header, [[text.inline(name), str(count)] for name, count in (counts or {}).items()])


def _code_table(counts: dict[str, int] | None) -> str:
    """Codes with their counts and what they mean; empty where nothing was counted."""
    sentences = {code.value: sentence for code, sentence in SENTENCES.items()}
    rows = [
        [text.code(name), str(count), sentences.get(name, "")]
        for name, count in sorted((counts or {}).items(), key=lambda item: -item[1])
    ]
    return text.table(["code", "rows", "meaning"], rows) if rows else ""


def _settings_table(settings: Resolved) -> str:
    values = settings.model_dump(by_alias=True, exclude_none=True, exclude={"method_reason"})
    rows = [[text.code(name), text.code(_readable(value))] for name, value in values.items()]
    return text.table(["setting", "value"], rows)


def _readable(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _marked(pieces: list[tuple[str, bool]]) -> str:
    """One row as text, what is trained between ⟦ and ⟧."""
    return text.block("".join(f"⟦{piece}⟧" if trained else piece for piece, trained in pieces), PREVIEW_CHARACTERS)
