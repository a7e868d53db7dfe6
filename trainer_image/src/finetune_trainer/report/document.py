"""The report as Markdown and as a page, its pictures, and the model cards, from one record of the run."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.comparing.intervals import LEVEL
from finetune_api.dataset.codes import SENTENCES
from finetune_api.handoff import Artifact, JobConfig
from finetune_api.objectives import SAMPLED, Objective
from finetune_api.output import PackageFormat
from finetune_api.spec import Method
from finetune_api.status import Resolved
from finetune_trainer.data.rows import FORMAT_SENTENCES
from finetune_trainer.evaluation.run_record import BaseFacts, RunRecord
from finetune_trainer.report import serving, text
from finetune_trainer.report.curves import curve_table
from finetune_trainer.report.data_tables import (
    blend_table,
    file_table,
    gguf_context,
    histogram_table,
    length_table,
    merge_context,
    unused_columns,
)
from finetune_trainer.report.head import build_head
from finetune_trainer.report.held_out import describe_terms, find_terms, held_out_table, kept_table, reward_parts_table
from finetune_trainer.report.model_card import front_matter
from finetune_trainer.report.notes import build_notes, licence_note
from finetune_trainer.report.page import Pictures, open_templates, render_page
from finetune_trainer.report.pictures import bucket_size, curves_svg, draw_curves, draw_lengths, lengths_svg
from finetune_trainer.report.recommendations import recommend
from finetune_trainer.report.serving import adapter_obstacles, highest_rank, servability_table
from finetune_trainer.tokenization.previews import mark_trained

PREVIEW_CHARACTERS = 1200
MANY_BLANK_LINES = re.compile(r"\n{3,}")
"""What is left of the sections that a report does not have; an empty line of a code block is indented."""


def write_report(record: RunRecord, directory: Path) -> None:
    """Write the report and its pictures into the result folder, and the model card next to the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    write_documents(record, directory, _draw(record, directory))


def write_documents(record: RunRecord, directory: Path, pictures: Pictures) -> None:
    """Write the report with these pictures, which are drawn already, and the model cards."""
    context = _context(record, directory)
    markdown = _render("finetune_report.md.j2", context)
    (directory / Artifact.REPORT).write_text(markdown, encoding="utf-8")
    page = render_page(markdown, build_head(record), pictures)
    (directory / Artifact.REPORT_PAGE).write_text(page, encoding="utf-8")
    for folder in (Artifact.ADAPTER, Artifact.MERGED):
        if (directory / folder).is_dir():
            card = _render("model_card.md.j2", context | {"folder": folder.value})
            (directory / folder / "README.md").write_text(front_matter(record, folder) + card, encoding="utf-8")


def _draw(record: RunRecord, directory: Path) -> Pictures:
    """Write the pictures, and return them for the page."""
    history, best, objective = record.history, record.best_step, record.config.spec.objective
    drawn = {}
    if not record.is_evaluation:
        draw_curves(history, best, directory / Artifact.CURVES, objective)
        drawn[Artifact.CURVES.value] = curves_svg(history, best, objective)
    if lengths := record.samples.histogram:
        draw_lengths(lengths, record.settings.max_length, directory / Artifact.LENGTHS)
        drawn[Artifact.LENGTHS.value] = lengths_svg(lengths, record.settings.max_length)
    return drawn


def _render(name: str, context: dict[str, Any]) -> str:
    text = open_templates(is_html=False).get_template(name).render(context)  # the filters escape Markdown
    return MANY_BLANK_LINES.sub("\n\n", text)


def _context(record: RunRecord, directory: Path) -> dict[str, Any]:
    objective = record.config.spec.objective
    place = _place(record.config, record.base)
    adapter = _adapter(record, directory)
    has_merged = record.score_check is not None or (record.merge is not None and record.merge.chosen is not None)
    withheld = record.merge.sentence if record.merge else ""
    is_reward_model = objective is Objective.REWARD_MODEL
    return {
        "run": record,
        "spec": record.config.spec,
        "output": record.config.output_key(),
        "place": place,
        "serving": serving,
        "has_merged": has_merged,
        "rank": highest_rank(adapter or {}),
        "is_adapter_servable": adapter is not None and not any(one.is_final for one in adapter_obstacles(adapter)),
        "servability_table": servability_table(
            adapter, has_merged=has_merged, withheld=withheld, is_reward_model=is_reward_model
        ),
        "batch_of": _name_batch(record),
        "recommendations": recommend(record),
        "notes": build_notes(
            record.base,
            None if record.is_evaluation else record.history.resumed_from,
            record.config.attempt,
            uses_template=objective is not Objective.DOMAIN_ADAPTATION,
            has_preflight=record.config.spec.has_preflight,
        ),
        "licence_note": licence_note(record.base.licence),
        "is_reward_model": is_reward_model,
        "samples_answers": objective in SAMPLED,
        "is_chat": objective is not Objective.DOMAIN_ADAPTATION,
        "legend": describe_terms(record.config.spec),
        "terms": find_terms(objective),
        "unit": find_terms(objective).unit.value,
        "held_out_table": held_out_table(record),
        "kept_table": kept_table(record),
        "reward_parts_table": reward_parts_table(record),
        "reads_answers": any(one.answer or one.service for one in record.config.spec.rewards),
        "about": _about(record),
        "verdict": record.detail[:1].upper() + record.detail[1:],
        "comparison": record.comparison,
        "choices": record.choices,
        "reward": record.history.final_reward,
        "seen": _describe_rows_seen(record),
        "level": f"{LEVEL:.0%}".replace("%", " %"),
        "blend_table": blend_table(record.summary),
        "file_table": file_table(record.summary),
        "unused_columns": unused_columns(record.summary),
        "length_table": length_table(record.summary, record.settings.max_length),
        "histogram_table": histogram_table(record.samples.histogram),
        "format_table": _format_table(record.dataset.rows_by_format),
        "reject_table": _code_table(record.dataset.rejected_rows_by_code),
        "repair_table": _code_table(record.dataset.repaired_rows_by_code),
        "settings_table": _settings_table(record.settings),
        **merge_context(record.merge),
        **gguf_context(record),
        "curve_table": curve_table(record.history, objective, record.best_step),
        "steps_a_point": bucket_size(record.history),
        "previews": [text.block(mark_trained(pieces), PREVIEW_CHARACTERS) for pieces in record.previews],
    }


def _about(record: RunRecord) -> str:
    """Return what was trained on what, when and where, in one line."""
    config, spec = record.config, record.config.spec
    where = f"`{config.namespace}/{config.name}`" if config.namespace else f"`{config.name}`"
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    return f"{text.code(spec.model.uri)} on {text.code(spec.dataset.train.title)} · {where} · {when}"


def _describe_rows_seen(record: RunRecord) -> str:
    """Return how often the training read its rows, in one sentence."""
    epochs, rows = record.epochs_seen, record.samples.train_rows
    if epochs < 1:
        about = "" if record.reads_single_rows else "about "
        return f"The training read {about}{round(epochs * rows)} of {rows} rows ({epochs:.2g} epochs)."
    return f"The training read its rows {epochs:.3g} times." if epochs > 1 else "The training read each row once."


def _place(config: JobConfig, base: BaseFacts) -> serving.Place:
    storage, hub, model, oci = config.spec.storage, config.spec.hub, config.spec.model, config.spec.output.oci
    pushed = f"{oci.repository}:{oci.tag_of(config.name)}" if oci and not config.is_local else None
    return serving.Place(
        name=config.name,
        output=config.output_key(),
        base=model.uri,
        revision=model.revision,
        endpoint=storage.endpoint if storage else None,
        hub_endpoint=hub.endpoint if hub else None,
        is_local=config.is_local,
        image=pushed if oci and oci.format is PackageFormat.IMAGE else None,
        artifact=pushed if oci and oci.format is PackageFormat.MODEL_PACK else None,
        namespace=config.namespace,
        needs_tokenizer=base.is_tokenizer_read_otherwise,
    )


def _adapter(record: RunRecord, directory: Path) -> Mapping[str, Any] | None:
    """Return the adapter's own configuration, else one from the settings; None if every weight was tuned."""
    if record.settings.method == Method.FULL:
        return None
    path = directory / Artifact.ADAPTER / "adapter_config.json"
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    settings = record.settings
    return {
        "r": settings.lora_rank,
        "lora_alpha": settings.lora_alpha,
        "rank_pattern": settings.rank_pattern,
        "alpha_pattern": settings.alpha_pattern,
        "target_modules": settings.target_modules,
    }


def _name_batch(record: RunRecord) -> str:
    """Return the name of what the training loop counts as a row."""
    if record.config.spec.objective is Objective.RLHF:
        return "answers"
    return "sequences" if record.settings.packing else "rows"


def _format_table(counts: dict[str, int] | None) -> str:
    sentences = {name.value: sentence for name, sentence in FORMAT_SENTENCES.items()}
    rows = [[text.inline(name), str(count), sentences.get(name, "")] for name, count in (counts or {}).items()]
    return text.table(("format", "rows", "what a row has"), rows)


def _code_table(counts: dict[str, int] | None) -> str:
    """Return codes with counts and meanings, the most frequent first; empty if nothing was counted."""
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
    if isinstance(value, dict):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
