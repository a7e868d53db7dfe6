"""`finetune-trainer check-data`: check rows as preflight does, without a job, and convert them."""

# ruff: noqa: PLC0415 - templates and tokenizers are imported only for --model

import logging
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from finetune_api.dataset.codes import RepairCode
from finetune_api.handoff import ExitCode
from finetune_api.inputs.chat_template import RESERVED, ChatTemplateKwargs, ChatTemplateName
from finetune_api.spec import DatasetFormat, Objective
from finetune_trainer.commands.folders import require_folder
from finetune_trainer.commands.local_files import LocalFiles, find_files
from finetune_trainer.data.checks.output import (
    CONVERTED,
    OUTPUT_FILES,
    UNCONVERTED,
    CheckOutput,
    Conversion,
    print_conversion,
    print_rows,
    print_summary,
)
from finetune_trainer.data.checks.pipeline import Progress, check_rows
from finetune_trainer.data.checks.summary import (
    Summary,
    explain_lost_reasoning,
    explain_unusable,
    name_unknown_columns,
)
from finetune_trainer.data.formats.column_map import advise_field
from finetune_trainer.data.formats.export import ExportFormat
from finetune_trainer.data.rows import Rejected, Row, Source, UnreadableFile
from finetune_trainer.errors import InvalidConfig, TrainerError, name_some

if TYPE_CHECKING:
    from finetune_trainer.tokenization.chosen_template import TemplateChoice
    from finetune_trainer.tokenization.labeler import Labeler

logger = logging.getLogger(__name__)

LARGEST_TEMPLATE = 1 << 20
"""Bytes of a template's file, as of a ConfigMap."""
IN_A_JOB = "in a job: "
"""Precedes a field that a message names in addition to the option."""
_OPTIONS = {
    "spec.model.chatTemplateKwargs": "--chat-template-kwargs",
    "spec.model.chatTemplate": "--chat-template",
    "spec.dataset.columns": "--columns",
    "dataset.columns": "--columns",
    "dataset.maxRejectedPercent": "--max-rejected-percent",
    "hyperparameters.maxLength": "--max-length",
}


@dataclass(frozen=True, slots=True)
class Request:
    """The options of the check; without an objective, rows of every kind are accepted unchanged."""

    objective: Objective | None = None
    format: DatasetFormat = DatasetFormat.AUTO
    columns: Mapping[str, str] | None = None
    to: ExportFormat | None = None
    model: Path | None = None
    max_length: int = 2048
    skips_long: bool = False
    max_rejected_percent: int = 20
    show: int = 0
    """The number of accepted rows to print as the model reads them."""
    system_message: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, str] | None = None
    names_fields: bool = False
    """Messages name a job's fields in place of the options, because the request is that of a manifest."""

    def name(self, why: str) -> str:
        """Return a message on a job with the options of this command in place of the job's fields."""
        for field, option in () if self.names_fields else _OPTIONS.items():
            why = re.sub(f"(?<!{IN_A_JOB}){re.escape(field)}", option, why)
        return why


def check_local_rows(files: list[str], out: Path | None, request: Request) -> None:
    """Print the counts, and write the files if there is a folder for them, which a conversion needs; raise
    DatasetUnusable by the rules of a job."""
    if out:
        require_folder(out, "--out")
    if unknown := name_unknown_columns(frozenset(request.columns or ())):
        raise InvalidConfig(request.name(unknown))
    summary = Summary()
    conversion = Conversion(out, request.to, request.objective) if out and request.to else None
    found = find_files(files, [out / name for name in (*OUTPUT_FILES, CONVERTED, UNCONVERTED)] if out else [])
    summary.ignored_files = found.ignored
    if found.ignored:
        logger.warning("skipped, not data files: %s", name_some(found.ignored))
    try:
        shown = _check(found, request, summary, CheckOutput(out, summary, conversion) if out else None)
    except UnreadableFile as error:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, str(error)) from None
    print_summary(summary)
    if conversion is not None:
        print_conversion(conversion)
    print_rows(shown)
    if lost := explain_lost_reasoning(summary.repaired_by_code[RepairCode.REASONING_LOST], summary.accepted):
        logger.warning("%s", request.name(lost))
    _refuse_unusable(summary, conversion, request)


def parse_columns(options: list[str]) -> dict[str, str]:
    """Parse `known=own` pairs, separated by commas or given one by one; raises InvalidConfig."""
    return _parse_pairs(options, "--columns", "KNOWN=OWN, the format's column and yours, for example prompt=question")


def parse_kwargs(options: list[str]) -> dict[str, str]:
    """Parse `variable=value` pairs, as a job takes them, separated by commas or given one by one; raises
    InvalidConfig."""
    kwargs = _parse_pairs(options, "--chat-template-kwargs", "VARIABLE=VALUE, for example enable_thinking=false")
    if taken := sorted(kwargs.keys() & set(RESERVED)):
        raise InvalidConfig(f"--chat-template-kwargs: {', '.join(taken)} has a value already: remove it")
    try:
        return TypeAdapter(ChatTemplateKwargs).validate_python(kwargs)
    except ValidationError as error:
        first = error.errors()[0]
        name = next((str(part) for part in first["loc"]), "")
        raise InvalidConfig(f"--chat-template-kwargs {name}: {first['msg']}, as in model.chatTemplateKwargs") from None


def _parse_pairs(options: list[str], option: str, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for pair in ",".join(options).split(","):
        name, separator, value = (part.strip() for part in pair.partition("="))
        if not (name and separator and value):
            raise InvalidConfig(f"{option} {pair!r}: write {form}")
        pairs[name] = value
    return pairs


def _check(
    found: LocalFiles, request: Request, summary: Summary, output: CheckOutput | None
) -> list[tuple[Source, str]]:
    """Check and write the rows, and return the first accepted ones as the model reads them, each with its place."""
    shown: list[tuple[Source, str]] = []
    with output or nullcontext(), _progress_bar(found.size) as show:
        labeler = _load_labeler(request.model, request) if request.model else None
        rows = check_rows(
            found.read,
            summary=summary,
            format=request.format.value,
            columns=request.columns,
            system_message=request.system_message,
            objective=request.objective.value if request.objective else None,
            labeler=labeler,
            max_length=request.max_length,
            skips_long=request.skips_long,
            on_progress=show,
            advise=advise_field if request.names_fields else _advise_option,
        )
        for row in rows:
            if output:
                output.write(row)
            if labeler and len(shown) < request.show and not isinstance(row, Rejected):
                shown.append((row.source, _preview(row, labeler, request)))
    return shown


def _preview(row: Row, labeler: "Labeler", request: Request) -> str:
    from finetune_trainer.tokenization.previews import mark_trained

    objective = request.objective or Objective.CHAT
    return mark_trained(labeler.preview(row, objective.value, request.max_length))


def _advise_option(columns: Mapping[str, str]) -> tuple[str, str]:
    """Return the option of this command that names columns, and its value in a shell."""
    return f"--columns ({IN_A_JOB}dataset.columns)", shlex.quote(
        ",".join(f"{known}={own}" for known, own in columns.items())
    )


def _load_labeler(model: Path, request: Request) -> "Labeler":
    from finetune_trainer.tokenization.labeler import load_labeler

    try:
        return load_labeler(model, str(model), _read_choice(request))
    except TrainerError as refused:
        raise TrainerError(refused.code, request.name(refused.message)) from refused


def _read_choice(request: Request) -> "TemplateChoice":
    """Return the chosen template, by its name or from a file, with its variables; raises InvalidConfig."""
    from finetune_trainer.tokenization.chosen_template import TemplateChoice

    kwargs, given = request.chat_template_kwargs or {}, request.chat_template
    if given is None:
        return TemplateChoice(kwargs=kwargs)
    if name := next((one for one in ChatTemplateName if one.value.lower() == given.lower()), None):
        return TemplateChoice(name, kwargs=kwargs)
    try:
        with Path(given).open(encoding="utf-8") as file:
            text = file.read(LARGEST_TEMPLATE + 1)
    except (OSError, ValueError) as error:
        reason = "it is not text in UTF-8" if isinstance(error, ValueError) else (error.strerror or "unreadable")
        fix = f"give a file of a template in Jinja, or one of {', '.join(ChatTemplateName)}"
        raise InvalidConfig(f"--chat-template {given}: {reason}: {fix}") from None
    if len(text) > LARGEST_TEMPLATE:
        message = f"--chat-template {given}: it has more than {LARGEST_TEMPLATE:,} characters, which no ConfigMap holds"
        raise InvalidConfig(message)
    return TemplateChoice(text=text, kwargs=kwargs)


@contextmanager
def _progress_bar(size: int) -> Iterator[Progress]:
    """Show a progress bar over the bytes of the files, on a terminal only."""
    bar = tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=None, desc="checking")

    def show(rows: int, bytes_read: int) -> None:
        bar.set_postfix_str(f"{rows:,} rows", refresh=False)
        bar.update(bytes_read - bar.n)

    with bar, logging_redirect_tqdm():
        yield show


def _refuse_unusable(summary: Summary, conversion: Conversion | None, request: Request) -> None:
    why = explain_unusable(summary, request.max_rejected_percent)
    if why is None and conversion is not None and not conversion.converted:
        why = f"none of the {summary.accepted} accepted rows can be converted to {conversion.target}"
    if why is not None:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, request.name(why))
