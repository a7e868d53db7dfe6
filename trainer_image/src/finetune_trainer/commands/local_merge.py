"""The merge of `finetune-trainer merge` and its validation: those of a job, without a job."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from finetune_api.handoff import ExitCode
from finetune_trainer.commands.merge_inputs import Compared
from finetune_trainer.commands.model_place import progress_bar
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.gate_rules import WIDER, ValidationResult, find_faults
from finetune_trainer.merging.gate import GateNotRun, run_gate
from finetune_trainer.merging.gate_messages import Candidate, GatePlan
from finetune_trainer.merging.merge import stored_precision
from finetune_trainer.models.adapters.saved import GENERATION_CONFIG, save_tokenizer
from finetune_trainer.models.architectures import name_loader
from finetune_trainer.models.files.tensor_files import TensorFiles, total_bytes
from finetune_trainer.models.loading import DTYPES
from finetune_trainer.models.memory.estimate import format_bytes
from finetune_trainer.pipeline.full_model import PLAIN, digest_tokenizer, make_candidate
from finetune_trainer.sigterm import StopFlag

logger = logging.getLogger(__name__)

IN_A_POD = "raise resources.limits.memory"
HERE = "free memory, or merge without the comparison with --no-validate"


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written, the class that loads it, and the gate's result, if it was run."""

    precision: str
    loader: str
    tensors: int
    size: int
    result: ValidationResult | None


def merge_folders(
    base: Path, adapter: Path, compared: Compared, precision: str | None, directory: Path, *, stop: StopFlag
) -> Merged:
    """Write the merged model to `directory` in the base's number format or the given one, and validate it.

    Without rows to compare nothing is validated. Raise if the model may not be used.
    """
    scratch = directory.parent
    candidate = Candidate(name=PLAIN, directory=directory)
    plan = GatePlan(
        base=base,
        adapter=adapter,
        precision=precision or stored_precision(base),
        candidates=[candidate],
        samples=[(list(one.input_ids), list(one.labels)) for one in compared.samples],
        prompts=[],
        stop_ids=[],
        max_new_tokens=1,
        tokenizer_sha256=digest_tokenizer(compared.tokenizer, compared.labeler, scratch / "tokenizer-used"),
        device="cpu",
    )
    _require_space(plan, scratch)
    try:
        _write(plan, candidate, stop)
        save_tokenizer(compared.tokenizer, directory, compared.labeler)
        if (adapter / GENERATION_CONFIG).is_file():  # it has the tokens that end an answer
            shutil.copyfile(adapter / GENERATION_CONFIG, directory / GENERATION_CONFIG)
        result = _validate(plan, scratch, stop) if plan.samples else None
    except GateNotRun as why:
        raise _withheld(str(why).replace(IN_A_POD, HERE)) from None
    with TensorFiles.of_folder(directory) as files:
        size = sum(header.size() for header in files.headers.values())
        return Merged(plan.precision, name_loader(directory), len(files.headers), size, result)


def _require_space(plan: GatePlan, folder: Path) -> None:
    needed, free = total_bytes(plan.base, DTYPES[plan.precision].itemsize), shutil.disk_usage(folder).free
    if needed > free:
        raise TrainerError(
            ExitCode.STORAGE_UNAVAILABLE,
            f"OUTPUT: the model takes {format_bytes(needed)}, and {format_bytes(free)} of the disk are free: free "
            "space, or name a folder on another disk",
        )


def _write(plan: GatePlan, candidate: Candidate, stop: StopFlag) -> None:
    with TensorFiles.of_folder(plan.base) as files:
        total = len(files.headers)
    logger.info("merging %s tensors in %s", total, plan.precision)
    with progress_bar("merging", stop, total=total) as on_work:
        make_candidate(plan, candidate, on_work)


def _validate(plan: GatePlan, scratch: Path, stop: StopFlag) -> ValidationResult:
    logger.info("reading the merged model back, and comparing it with base and adapter")
    with progress_bar("comparing", stop) as on_work:
        (result,) = run_gate(plan, scratch, on_work, stop)
    faults = find_faults(result, None, [], 0)
    if faults:
        advice = "" if plan.precision == "FP32" else f": use --precision {WIDER[plan.precision]}"
        raise _withheld(f"{faults[0]}{advice}")
    return result


def _withheld(why: str) -> TrainerError:
    return TrainerError(ExitCode.GATE_NOT_MET, f"no model is written: {why}")
