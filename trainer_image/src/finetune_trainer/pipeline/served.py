"""The model as it will be served, if it differs from the one that was trained: QLoRA's adapter on the 16-bit base."""

import gc
import logging
from dataclasses import replace

import torch

from finetune_api.spec import Method
from finetune_api.status import Resolved
from finetune_trainer.distributed.world import as_only_process
from finetune_trainer.evaluation.ability import Ability
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.run_record import Served
from finetune_trainer.models.loading import DTYPES, load_tokenizer, model_errors
from finetune_trainer.models.memory_estimate import format_bytes
from finetune_trainer.models.tensor_files import read_local_shape
from finetune_trainer.monitoring.host_memory import available_bytes
from finetune_trainer.pipeline.finalize import TrainingResult
from finetune_trainer.pipeline.inputs import Inputs
from finetune_trainer.pipeline.load import build_judge, load_model, load_teacher
from finetune_trainer.pipeline.measure import answer_prompts, measure_ability, pair_answers
from finetune_trainer.training.callbacks import restore_trained
from finetune_trainer.training.methods import build_trainer
from finetune_trainer.training.methods.parts import LoopContext, TrainerParts
from finetune_trainer.training.out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)

TRAIN_SAMPLES = 64
"""Training samples that a trainer is built on here; it takes no step."""


def measure_as_served(inputs: Inputs, trained: TrainingResult, device: torch.device) -> TrainingResult:
    """Add the figures and answers of the base in 16 bits, without and with the adapter, to a result of QLoRA.

    The trained model must be freed before. If the base does not fit in memory, only the reason is added.
    """
    is_measured = inputs.validation or inputs.questions or inputs.ability_questions
    if trained.settings.method != Method.QLORA or not is_measured:
        return trained
    gc.collect()
    torch.cuda.empty_cache()
    obstacle = _find_obstacle(inputs, trained.settings, device)
    if not obstacle:
        try:
            with as_only_process():
                return _measure(inputs, trained, device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            obstacle = "the base in 16 bits does not fit in the GPU's memory together with a batch of held-out rows"
        gc.collect()  # outside the handler: its traceback keeps the tensors alive
        torch.cuda.empty_cache()
    logger.warning("the result is not measured as it will be served: %s", obstacle)
    return replace(trained, served=Served(obstacle=obstacle))


def _find_obstacle(inputs: Inputs, settings: Resolved, device: torch.device) -> str:
    """Return why the base in 16 bits cannot be loaded, by its size; empty if it may fit."""
    with model_errors(inputs.model):
        shape = read_local_shape(inputs.model)
        teacher = read_local_shape(inputs.teacher.folder) if inputs.teacher else None
    if shape is None:
        return ""
    needed = (shape.parameters + (teacher.parameters if teacher else 0)) * DTYPES[str(settings.precision)].itemsize
    is_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if is_gpu else available_bytes()
    if needed < free:
        return ""
    kind = "GPU memory" if is_gpu else "memory"
    sizes = f"{format_bytes(needed)}, and {format_bytes(free)} of {kind} are free"
    what = "the base in 16 bits, as serving software loads it"
    return f"{what}, and its teacher need {sizes}" if teacher else f"{what}, needs {sizes}"


def _measure(inputs: Inputs, trained: TrainingResult, device: torch.device) -> TrainingResult:
    """Measure and answer twice: with a fresh adapter, which changes nothing, or the initial one; then with the trained
    one."""
    run, spec = inputs.run, inputs.run.config.spec
    run.reporter.set_stage("Evaluating")
    changes = {"method": Method.LORA, "packing": False, "gradient_checkpointing": False}
    model, settings = load_model(inputs, trained.settings.model_copy(update=changes), device)
    scratch = run.workspace / "served"
    loop = LoopContext(run.reporter, run.stop, History(scratch / "metrics.jsonl"), Plateau(None), inputs.best_weights)
    few = inputs.train[:TRAIN_SAMPLES]
    parts = TrainerParts(model, load_tokenizer(inputs.model), settings, loop, few, inputs.validation, scratch)
    teacher = load_teacher(inputs, settings, device)
    trainer = build_trainer(spec.objective, parts, build_judge(inputs, settings, device, loop), teacher)
    is_compared = spec.evaluation.baseline and inputs.validation
    before = trainer.measure_again(trained.history.baseline_reward()) if is_compared else None
    base, known = answer_prompts(inputs, trainer, loop), measure_ability(inputs, trainer, loop)
    restore_trained(trainer.model, inputs.best_weights)
    after = trainer.measure_again(trained.history.final_reward) if inputs.validation else None
    answers = pair_answers(inputs, base, answer_prompts(inputs, trainer, loop))
    ability = Ability(known, measure_ability(inputs, trainer, loop)) if known else None
    return replace(trained, served=Served(before, after), answers=answers, ability=ability)
