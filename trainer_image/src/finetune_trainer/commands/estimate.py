"""`finetune-trainer estimate`: the GPU memory of each method for a model, without a job, a GPU or torch."""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_api.defaults import Facts
from finetune_api.handoff import ExitCode
from finetune_api.scalars import parse_quantity
from finetune_api.spec import FineTuneJobSpec, Method, Objective
from finetune_api.status import Resolved
from finetune_api.text.printable import printable
from finetune_api.tuning import Lora
from finetune_trainer.commands.model_place import find_model, minimal_spec
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.files.base_model import ModelFacts, read_config
from finetune_trainer.models.memory.estimate import GIB, MemoryEstimate, estimate_measuring, format_bytes
from finetune_trainer.models.memory.shape import ModelShape
from finetune_trainer.models.resolve_settings import estimate_settings, may_share_base
from finetune_trainer.models.trainable import require_method, require_trainable
from finetune_trainer.sigterm import StopFlag

METHODS = (Method.QLORA, Method.LORA, Method.FULL)
ENOUGH_ROWS = 1000
"""Rows of the assumed dataset: with fewer rows than a batch has, the batch would be smaller."""
SMALLEST_GPU = GIB
NOTE = "Computed from the model's configuration and the headers of its weights; not measured on a GPU."


@dataclass(frozen=True, slots=True)
class Request:
    """The options of the estimate; `gpu_memory` is in bytes and for each GPU."""

    max_length: int = 2048
    gpus: int = 1
    gpu_memory: int | None = None
    method: Method = Method.AUTO
    objective: Objective = Objective.CHAT
    teacher: str | None = None
    """The model that a student learns from, named like MODEL; only with objective Distillation."""

    @property
    def methods(self) -> Sequence[Method]:
        """The methods to estimate."""
        return METHODS if self.method is Method.AUTO else (self.method,)


@dataclass(frozen=True, slots=True)
class MethodEstimate:
    """One method with the settings that a job gets; `obstacle` is why the architecture cannot be trained with it."""

    method: Method
    settings: Resolved
    memory: MemoryEstimate
    fits: bool | None
    obstacle: str | None = None
    verdict: int | None = None
    """Bytes to measure the result of QLoRA on the base in 16 bits; None of other methods, which measure in training."""

    @property
    def name(self) -> str:
        """The method, and whether its base is shared out over the GPUs."""
        return f"{self.method.value}, shardBase" if self.settings.shard_base else self.method.value


def print_estimate(model: str, request: Request, stop: StopFlag, *, as_json: bool) -> ExitCode:
    """Print the memory by part; return WONT_FIT if a GPU's memory is given and no method fits it."""
    place = find_model(model, "MODEL", stop)
    with tempfile.TemporaryDirectory(prefix="finetune-estimate-") as scratch:
        facts = place.check(Path(scratch), "MODEL")
        config = read_config(Path(scratch))
    require_trainable(config, request.objective)
    shape = _require_shape(facts, model)
    if teacher := _name_of_teacher(request):
        with tempfile.TemporaryDirectory(prefix="finetune-estimate-") as scratch:
            taught = find_model(teacher, "--teacher", stop).check(Path(scratch), "--teacher")
        shape = replace(shape, teacher=_require_shape(taught, teacher))
    found = []
    for method in request.methods:
        ways = (False, True) if _may_share_base(method, request) else (False,)
        estimates = [estimate_method(shape, method, request, shard_base=way) for way in ways]
        try:
            require_method(config, method)
        except TrainerError as error:
            fits = None if request.gpu_memory is None else False
            estimates = [replace(one, fits=fits, obstacle=error.message) for one in estimates]
        found += estimates
    text = _to_json(model, facts, request, found) if as_json else "\n".join(_to_text(model, facts, request, found))
    sys.stdout.write(f"{printable(text, lines=True)}\n")
    return ExitCode.WONT_FIT if all(one.fits is False for one in found) else ExitCode.OK


def _require_shape(facts: ModelFacts, name: str) -> ModelShape:
    if facts.shape is None:
        problem = f"{name}: config.json lacks the sizes of the model: its memory is not estimated"
        raise TrainerError(ExitCode.MODEL_UNAVAILABLE, problem)
    return facts.shape


def _name_of_teacher(request: Request) -> str | None:
    """Return the teacher that objective Distillation needs; raise InvalidConfig without it, or with another one."""
    if (request.objective is Objective.DISTILLATION) == bool(request.teacher):
        return request.teacher
    if request.teacher:
        problem = f"--teacher {request.teacher}: only objective Distillation has a teacher"
        raise InvalidConfig(f"{problem}: add --objective Distillation, or remove --teacher")
    raise InvalidConfig("--objective Distillation: add --teacher with the model that the student learns from")


def _may_share_base(method: Method, request: Request) -> bool:
    spec = _build_spec(method, request)
    return request.gpus > 1 and may_share_base(spec, Resolved(method=method.value))


def _build_spec(method: Method, request: Request) -> FineTuneJobSpec:
    length, gpus = request.max_length, request.gpus
    return minimal_spec("", "MODEL", objective=request.objective, method=method, max_length=length, gpus=gpus)


def estimate_method(shape: ModelShape, method: Method, request: Request, *, shard_base: bool = False) -> MethodEstimate:
    """Return what a job with this method and its defaults takes on each GPU.

    For a given memory the micro-batch and checkpointing are those of a job with it as `tuning.vramBudget`.
    """
    spec = _build_spec(method, request)
    if shard_base:
        tuning = spec.tuning.model_copy(update={"lora": Lora(shard_base=True)})
        spec = spec.model_copy(update={"tuning": tuning})
    facts = Facts(shape.parameters, ENOUGH_ROWS, 0, method)
    settings, memory = estimate_settings(spec, shape, facts, request.gpu_memory)
    fits = None if request.gpu_memory is None else memory.total <= request.gpu_memory
    verdict = None
    if method is Method.QLORA:
        verdict = estimate_measuring(shape, settings, spec.objective, ranks=request.gpus if shard_base else 1).total
    return MethodEstimate(method, settings, memory, fits, verdict=verdict)


def parse_memory(text: str) -> int:
    """Return the bytes of `--gpu-memory`; raise InvalidConfig for what is not the memory of a GPU."""
    try:
        found = parse_quantity(text)
    except ValueError:
        found = 0
    if found < SMALLEST_GPU:
        raise InvalidConfig(f"--gpu-memory {text}: write a quantity such as 24Gi or 80G")
    return found


def _to_text(model: str, facts: ModelFacts, request: Request, found: Sequence[MethodEstimate]) -> Iterator[str]:
    gpus = "one GPU" if request.gpus == 1 else f"each of {request.gpus} GPUs"
    memory = "" if request.gpu_memory is None else f" with {format_bytes(request.gpu_memory)}"
    yield f"{model}: {facts.architecture}, {facts.parameters:,} weights"
    yield f"Memory of {gpus}{memory} for objective {request.objective.value}, at most {request.max_length} tokens a row"
    yield ""
    rows = [["", *(one.name for one in found)]]
    for name, _ in found[0].memory.parts():
        sizes = [dict(one.memory.parts())[name] for one in found]
        if any(sizes):
            rows.append([name.replace("_", " "), *(format_bytes(size) if size else "-" for size in sizes)])
    rows.append(["total", *(format_bytes(one.memory.total) for one in found)])
    if request.gpu_memory is not None:
        rows.append(["fits", *("yes" if one.fits else "no" for one in found)])
    rows.append(["for a verdict", *(format_bytes(one.verdict) if one.verdict else "-" for one in found)])
    rows.append(["rows per batch", *(str(one.settings.per_device_train_batch_size) for one in found)])
    rows.append(["checkpointing", *("yes" if one.settings.gradient_checkpointing else "no" for one in found)])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
    yield ""
    yield from (f"{one.name}: {one.obstacle}" for one in found if one.obstacle)
    if request.gpu_memory is not None:
        yield "A job gets these settings with tuning.vramBudget set to the memory of the GPU."
    if any(one.verdict for one in found):
        yield "After QLoRA the verdict and gates need the base in 16 bits, which is loaded when the training has ended."
    if request.objective is Objective.RLHF:
        yield "Rewards are computed: a reward model takes its weights in 16 bits on top, on each GPU."
    yield NOTE


def _to_json(model: str, facts: ModelFacts, request: Request, found: Sequence[MethodEstimate]) -> str:
    content = {
        "model": model,
        "architecture": facts.architecture,
        "parameters": facts.parameters,
        "objective": request.objective.value,
        "maxLength": request.max_length,
        "gpus": request.gpus,
        "gpuMemoryBytes": request.gpu_memory,
        "methods": [
            {
                "method": one.method.value,
                "shardBase": bool(one.settings.shard_base),
                "fits": one.fits,
                "obstacle": one.obstacle,
                "totalBytes": one.memory.total,
                "verdictBytes": one.verdict,
                "partBytes": {_camel(name): size for name, size in one.memory.parts()},
                "perDeviceTrainBatchSize": one.settings.per_device_train_batch_size,
                "gradientAccumulationSteps": one.settings.gradient_accumulation_steps,
                "gradientCheckpointing": one.settings.gradient_checkpointing,
            }
            for one in found
        ],
    }
    return json.dumps(content, indent=2)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)
