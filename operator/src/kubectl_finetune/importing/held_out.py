"""Held-out rows: where they are, and what of them the training rows determine."""

from typing import Any, NamedTuple

from kubectl_finetune.importing.draft import Draft
from kubectl_finetune.importing.locations import RowSource, source_fields


class _Description(NamedTuple):
    format: str
    columns: dict[str, str]

    @property
    def texts(self) -> dict[str, str]:
        """Return both as messages show them, by the name of the field."""
        columns = ", ".join(f"{ours}: {own}" for ours, own in self.columns.items())
        return {"format": self.format or "Auto", "columns": f"{{{columns}}}" if columns else "the usual names"}


def put_validation(draft: Draft, sources: list[RowSource]) -> None:
    """Set the held-out rows, after those to train on."""
    training = _describe_training(draft)
    if draft.options.validation:
        sources = [RowSource("--validation", draft.options.validation, **training[0]._asdict())]
    if not sources:
        return
    first, *others = sources
    draft.set("dataset.validation", source_fields(draft, "dataset.validation", first, "--validation"), first.key)
    _put_description(draft, first, training)
    if first.max_samples:
        reason = f"all held-out rows are evaluated, not {first.max_samples}"
        draft.lose(first.key, reason, "use --validation with fewer rows", changes_training=False)
    for other in others:
        draft.lose(other.key, "a job has one source of held-out rows, the first", "put the rows under one prefix")


def _put_description(draft: Draft, source: RowSource, training: list[_Description]) -> None:
    """Set format and columns if all sources of training rows have the same; else name those that are lost."""
    own = _Description(source.format, source.columns)
    if all(one == own for one in training):
        for name, value in own._asdict().items():
            if value and draft.at(f"dataset.{name}") is None:
                draft.set(f"dataset.{name}", value, source.key)
        return
    used = _describe(draft.at("dataset"))
    for name, text in own.texts.items():
        if used.texts[name] != text and source.key != "--validation":
            reason = f"held-out rows have no {name} of their own: {used.texts[name]}, not {text}"
            draft.lose(source.key, reason, f"give held-out rows the {name} of the training rows, or use --validation")


def _describe_training(draft: Draft) -> list[_Description]:
    """Return format and columns of each source of training rows."""
    blend = draft.at("dataset.train.sources")
    return [_describe(one) for one in blend or [draft.at("dataset")]]


def _describe(block: dict[str, Any]) -> _Description:
    return _Description(block.get("format", ""), block.get("columns", {}))
