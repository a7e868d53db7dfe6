"""The model as it will be served, if it differs from the one that was trained: QLoRA's adapter on the 16-bit base."""

import gc
import logging
from dataclasses import replace

import torch

from finetune_api.handoff import TERMINAL_EXIT_CODES, ExitCode
from finetune_api.spec import Method
from finetune_api.status import Resolved
from finetune_trainer.distributed.world import ALONE, AgreedStop, World, as_only_process
from finetune_trainer.errors import TrainerError, is_out_of_memory, one_line
from finetune_trainer.evaluation.ability import Ability
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.run_record import Served
from finetune_trainer.models.files.tensor_files import read_local_shape
from finetune_trainer.models.loading import DTYPES, load_tokenizer, model_errors
from finetune_trainer.models.memory.estimate import format_bytes
from finetune_trainer.models.resolve_settings import fit_served, least_served, may_share_base
from finetune_trainer.models.shared_experts import find_few_experts
from finetune_trainer.monitoring.host_memory import available_bytes
from finetune_trainer.pipeline.finalize import TrainingResult
from finetune_trainer.pipeline.inputs import Inputs
from finetune_trainer.pipeline.load import build_judge, load_model, load_teacher, read_shape
from finetune_trainer.pipeline.measure import (
    answer_prompts,
    count_answers,
    first_answers,
    measure_ability,
    pair_answers,
)
from finetune_trainer.training import joint_measuring
from finetune_trainer.training.callbacks import restore_trained
from finetune_trainer.training.methods import build_trainer
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import LoopContext, TrainerParts

logger = logging.getLogger(__name__)

SERVED = "served"
"""Key by which the first process decides whether all measure together, and the name of their loop."""
TRAIN_SAMPLES = 64
"""Training samples that a trainer is built on here; it takes no step."""


def measure_together(inputs: Inputs, trained: TrainingResult, device: torch.device, world: World) -> TrainingResult:
    """Add the figures and answers of the base in 16 bits, without and with the adapter, to a result of QLoRA whose base
    or teacher is shared out: all processes measure it, with a share each. A collective.

    If it does not fit, or earlier attempts ended in the middle of it, only the reason is added.
    """
    settings = trained.settings
    if world.size == 1 or not (settings.shard_base or settings.shard_teacher) or not _is_due(inputs, settings):
        return trained
    run = inputs.run
    world.barrier("finished", run.on_work)  # the first process may have answered and saved for long
    _free_gpu()
    free = min(int(one) for one in world.gather(torch.tensor(_free_bytes(device))))
    fitting, obstacle = _fit_shares(inputs, settings, free, world)
    if world.is_first:
        obstacle = obstacle or joint_measuring.begin(run)
        if obstacle:
            logger.warning("the processes do not measure the result together as it will be served: %s", obstacle)
        world.set_key(SERVED, obstacle)
    elif found := world.wait_key(SERVED, run.on_work):
        obstacle = found
    if obstacle:
        return replace(trained, served=Served(obstacle=obstacle))
    try:
        measured = _measure(inputs, replace(trained, settings=fitting), device, world)
    except (TrainerError, RuntimeError) as error:
        if not _is_final(error):
            raise
        # The other processes wait in the middle of a pass: only a new attempt brings them back together.
        joint_measuring.give_up(run)
        problem = f"rank {world.rank} cannot measure the adapter on the base in 16 bits: {one_line(str(error))}"
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"{problem}; the next attempt leaves it out") from error
    if world.is_first:
        joint_measuring.end(run)
    return replace(measured, settings=settings)


def measure_as_served(inputs: Inputs, trained: TrainingResult, device: torch.device) -> TrainingResult:
    """Add the same to a result of QLoRA in one process, unless all have measured it.

    The trained model must be freed before. If the base does not fit in memory, only the reason is added.
    """
    tried = trained.served
    if (tried and not tried.obstacle) or not _is_due(inputs, trained.settings):
        return trained
    _free_gpu()
    obstacle = _find_obstacle(inputs, trained.settings, device)
    if not obstacle:
        try:
            with as_only_process():
                return _measure(inputs, trained, device)
        except (TrainerError, RuntimeError) as error:
            if not (is_out_of_memory(error) or (tried and _is_final(error))):
                raise
            obstacle = "the base in 16 bits does not fit in the GPU's memory together with a batch of held-out rows"
        _free_gpu()  # outside the handler: its traceback keeps the tensors alive
    if tried:
        obstacle = tried.obstacle
    elif may_share_base(inputs.run.config.spec, trained.settings):
        obstacle += "; with tuning.lora.shardBase the job's GPUs share it out"
    logger.warning("the result is not measured as it will be served: %s", obstacle)
    return replace(trained, served=Served(obstacle=obstacle))


def _is_due(inputs: Inputs, settings: Resolved) -> bool:
    return settings.method == Method.QLORA and bool(inputs.validation or inputs.questions or inputs.ability_questions)


def _free_gpu() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()


def _is_final(error: Exception) -> bool:
    """Return whether another attempt would fail in the same way."""
    return is_out_of_memory(error) or (isinstance(error, TrainerError) and error.code in TERMINAL_EXIT_CODES)


def _fit_shares(inputs: Inputs, settings: Resolved, free: int, world: World) -> tuple[Resolved, str]:
    """Return the settings with which the estimate fits on every GPU, and why none does, the same in all processes.

    It has to be on the safe side: a process that runs out of memory leaves the others waiting.
    """
    shape = read_shape(inputs)
    if shape is None:
        return settings, "config.json lacks the sizes of the model, so that several GPUs do not load it in 16 bits"
    shared = [shape if settings.shard_base else None, shape.teacher if settings.shard_teacher else None]
    if few := next(filter(None, (find_few_experts(one, world.size) for one in shared if one)), ""):
        return settings, f"in 16 bits, {few}"
    if fitting := fit_served(inputs.run.config.spec, shape, settings, free):
        return fitting, ""
    needed = format_bytes(least_served(inputs.run.config.spec, shape, settings))
    sizes = f"{needed} on each of {world.size} GPUs by the estimate, and {format_bytes(free)} are free"
    return settings, f"the base in 16 bits, as serving software loads it, needs {sizes}"


def _find_obstacle(inputs: Inputs, settings: Resolved, device: torch.device) -> str:
    """Return why the base in 16 bits cannot be loaded, by its size; empty if it may fit."""
    with model_errors(inputs.model):
        shape = read_local_shape(inputs.model)
        teacher = read_local_shape(inputs.teacher.folder) if inputs.teacher else None
    if shape is None:
        return ""
    needed = (shape.parameters + (teacher.parameters if teacher else 0)) * DTYPES[str(settings.precision)].itemsize
    free = _free_bytes(device)
    if needed < free:
        return ""
    kind = "GPU memory" if device.type == "cuda" else "memory"
    sizes = f"{format_bytes(needed)}, and {format_bytes(free)} of {kind} are free"
    what = "the base in 16 bits, as serving software loads it"
    return f"{what}, and its teacher need {sizes}" if teacher else f"{what}, needs {sizes}"


def _measure(inputs: Inputs, trained: TrainingResult, device: torch.device, world: World = ALONE) -> TrainingResult:
    """Measure and answer twice: with a fresh adapter, which changes nothing, or the initial one; then with the trained
    one. Prompts are answered by the first process, unless the base is sharded."""
    run, spec = inputs.run, inputs.run.config.spec
    run.reporter.set_stage("Evaluating")
    changes = {"method": Method.LORA, "packing": False, "gradient_checkpointing": False}
    scratch = run.workspace / SERVED
    loop = LoopContext(
        reporter=run.reporter,
        stop=AgreedStop(run.stop, world) if world.size > 1 else run.stop,
        history=History(scratch / "metrics.jsonl"),
        plateau=Plateau(None),
        best_weights=inputs.best_weights,
        world=world,
        name=SERVED,
    )
    model, settings = load_model(inputs, trained.settings.model_copy(update=changes), device, world)
    teacher = load_teacher(inputs, settings, device, world)
    world.barrier(f"{SERVED}/loaded", run.on_work)  # nodes may read at very different speeds
    loop.stop.raise_if_set()
    few = inputs.train[:TRAIN_SAMPLES]
    parts = TrainerParts(model, load_tokenizer(inputs.model), settings, loop, few, inputs.validation, scratch)
    trainer = build_trainer(spec.objective, parts, build_judge(inputs, settings, device, loop), teacher)
    is_compared = spec.evaluation.baseline and inputs.validation
    before = trainer.measure_again(trained.history.baseline_reward()) if is_compared else None
    base, known = _answer(inputs, trainer, loop, "before")
    restore_trained(trainer.model, inputs.best_weights)
    after = trainer.measure_again(trained.history.final_reward) if inputs.validation else None
    tuned, knows = _answer(inputs, trainer, loop, "after")
    loop.stop.raise_if_set()
    answers = pair_answers(inputs, base, tuned) if tuned or not inputs.questions else []
    return replace(
        trained,
        served=Served(before, after),
        answers=answers,
        ability=Ability(known, knows) if known else None,
        held_out=count_answers(inputs, base, tuned),
    )


def _answer(inputs: Inputs, trainer: LoopTrainer, loop: LoopContext, name: str) -> tuple[list[str], list[bool]]:
    """Return the current model's answers to the prompts, and whether those on general ability are correct; none in a
    process that does not answer."""
    with first_answers(inputs, trainer, loop, name) as is_answering:
        if not is_answering:
            return [], []
        return answer_prompts(inputs, trainer, loop), measure_ability(inputs, trainer, loop)
