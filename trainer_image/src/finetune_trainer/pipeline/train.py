"""The training run, top to bottom: from the rows that preflight wrote to a published, verified result."""

import gc
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

# bitsandbytes prepares compilation, which is not used, and searches a C++ compiler, which the image does not have.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch

from finetune_api.handoff import Artifact, ExitCode, Report
from finetune_api.spec import Method, Mode
from finetune_api.status import Metrics, Resolved
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.distributed.rank_layout import LEFT_GROUP
from finetune_trainer.distributed.world import ALONE, AgreedStop, World
from finetune_trainer.errors import TrainerError, is_out_of_memory
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.history import History
from finetune_trainer.models.adapters.eva import EVA, start_from_inputs
from finetune_trainer.models.adapters.saved import continue_adapter
from finetune_trainer.models.device import complete_settings, find_device, require_gpus, reset_peak
from finetune_trainer.models.loading import (
    load_tokenizer,
    trained_tensors,
)
from finetune_trainer.models.memory.estimate import micro_batches, share_batch, with_micro_batch
from finetune_trainer.models.resolve_settings import grow_micro_batch
from finetune_trainer.models.shared_experts import refuse_few_experts
from finetune_trainer.monitoring.tracking import Trackers, track
from finetune_trainer.pipeline.adapters import save_adapters
from finetune_trainer.pipeline.finalize import (
    TrainingResult,
    build_record,
    build_result,
)
from finetune_trainer.pipeline.full_model import is_full_model_requested, make_full_model
from finetune_trainer.pipeline.gguf_files import make_gguf
from finetune_trainer.pipeline.inputs import Inputs, as_text, load_inputs, share_digests
from finetune_trainer.pipeline.load import build_judge, load_model, load_teacher, read_shape
from finetune_trainer.pipeline.measure import answer_changed_prompts, measure_baseline, measure_result
from finetune_trainer.pipeline.served import measure_as_served, measure_together
from finetune_trainer.pipeline.stored_training import restore_training, store_training
from finetune_trainer.publishing.publish import publish
from finetune_trainer.publishing.pushes import push_published
from finetune_trainer.rewards.rollouts import require_engine
from finetune_trainer.training.callbacks import early_stopping_status
from finetune_trainer.training.checkpoint_files import (
    REFERENCE,
    SAVED_RUN,
    BaselineOutputs,
    SavedRun,
    replay_evaluations,
    restore_best_weights,
    restore_reference,
)
from finetune_trainer.training.checkpoints import Checkpoints
from finetune_trainer.training.kept_weights import KeptWeights
from finetune_trainer.training.methods import build_trainer
from finetune_trainer.training.methods.parts import LoopContext, TrainerParts
from finetune_trainer.training.out_of_memory import save_memory
from finetune_trainer.training.stored_checkpoints import remove_checkpoints

logger = logging.getLogger(__name__)


def train(run: RunContext) -> Report:
    """Train, verify and publish; return the report with the proof of publishing."""
    run.reporter.set_stage("Loading")
    require_gpus(run.config)
    require_engine(run.config.spec.rlhf)
    inputs = load_inputs(run)
    device = find_device()
    checkpoints = _find_checkpoints(inputs)
    with _track(inputs) as trackers:
        trained = train_within_memory(inputs, device, checkpoints)
        return conclude(inputs, measure_as_served(inputs, trained, device), checkpoints, trackers)


def finish_training(run: RunContext) -> Report:
    """Merge, validate and publish a training that another pod has stored; it can be interrupted and run again."""
    run.reporter.set_stage("Loading")
    inputs = load_inputs(run)
    trained = restore_training(inputs, _find_checkpoints(inputs))
    with _track(inputs) as trackers:
        report = merge_and_publish(inputs, trained)
        trackers.record_result(report)
    return report


def _find_checkpoints(inputs: Inputs) -> Checkpoints:
    return Checkpoints(inputs.run, inputs.base_sha256, inputs.rows.digests, inputs.rows.input_digests)


def _track(inputs: Inputs, *, is_first: bool = True) -> AbstractContextManager[Trackers]:
    run, result = inputs.run, inputs.result
    return track(
        run.config, result=result, workspace=run.workspace, reporter=run.reporter, stop=run.stop, is_first=is_first
    )


def train_distributed(run: RunContext, world: World, micro_batch: int | None = None) -> Report | None:
    """Train together with other processes; the first one publishes and returns the report.

    `micro_batch` is the number of rows of a micro-batch after a larger one did not fit; a step keeps its rows.
    """
    run.reporter.set_stage("Loading")
    with local_rank_zero_first("inputs", world, run.on_work):
        inputs = load_inputs(run, digests_models=world.local_rank == 0)
    world.barrier("loaded", run.on_work)
    inputs = share_digests(inputs, world.gather_bytes)
    refuse_few_experts(run.config.resolved or Resolved(), read_shape(inputs), world.size)
    device = find_device(world)
    checkpoints = _find_checkpoints(inputs)
    settings = fill_gpu(inputs, device, world, micro_batch)
    with _track(inputs, is_first=world.is_first) as trackers:
        try:
            trained = train_once(inputs, settings, device, checkpoints, world)
        except RuntimeError as error:  # PID 1 starts all again: the other processes wait in the middle of a step
            if not is_out_of_memory(error):
                raise
            problem = (
                f"rank {world.rank} is out of GPU memory with {settings.per_device_train_batch_size} rows per batch"
            )
            raise TrainerError(ExitCode.GPU_OUT_OF_MEMORY, f"{problem}: {save_memory(settings, world.size)}") from error
        trained = measure_together(inputs, trained, device, world)
        world.destroy_group(run.on_work)
        (run.workspace / LEFT_GROUP).touch()
        if not world.is_first:
            return None
        return conclude(inputs, measure_as_served(inputs, trained, device), checkpoints, trackers)


def conclude(inputs: Inputs, trained: TrainingResult, checkpoints: Checkpoints, trackers: Trackers) -> Report:
    """Publish the result, or store the trained weights if another pod merges them."""
    trackers.write_files()
    inputs.run.stop.raise_if_set()
    if inputs.run.config.separate_merge and is_full_model_requested(inputs):
        report = store_training(inputs, trained, checkpoints)
    else:
        report = merge_and_publish(inputs, trained)
    trackers.record_result(report)
    return report


def merge_and_publish(inputs: Inputs, trained: TrainingResult) -> Report:
    """Merge and validate if a full model is requested, write the report and publish."""
    full = make_full_model(inputs, trained)
    inputs.run.stop.raise_if_set()
    gguf = make_gguf(inputs, trained, full)
    inputs.run.stop.raise_if_set()
    record = build_record(inputs, trained, full, gguf)
    from finetune_trainer.report.document import write_report  # noqa: PLC0415 - its libraries draw and render the page

    write_report(record, inputs.result)
    report = publish(inputs.run, inputs.result, build_result(inputs, record))
    remove_checkpoints(inputs.run.config, inputs.run.storage)
    return push_published(inputs.run, report)


def train_within_memory(inputs: Inputs, device: torch.device, checkpoints: Checkpoints) -> TrainingResult:
    """Train; if the GPU runs out of memory, retry with half the micro-batch and the same effective batch."""
    for settings in micro_batches(fill_gpu(inputs, device)):
        try:
            return train_once(inputs, settings, device, checkpoints)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if settings.rollouts_gpu_memory_fraction is not None:  # the memory of its engine is not free again
                raise TrainerError(
                    ExitCode.GPU_OUT_OF_MEMORY,
                    f"the GPU's memory is too small for {settings.per_device_train_batch_size} rows per batch next to "
                    "vLLM: lower hyperparameters.perDeviceTrainBatchSize or rlhf.rollouts.gpuMemoryFraction, or set "
                    "rlhf.rollouts.engine Transformers",
                ) from error
            logger.warning("out of GPU memory with %s rows per batch", settings.per_device_train_batch_size)
        gc.collect()  # outside the handler: its traceback keeps the tensors alive
        torch.cuda.empty_cache()
    rows = settings.per_device_train_batch_size or 1  # KTO, for example, needs two
    fewest = "one row" if rows == 1 else f"{rows} rows"
    raise TrainerError(
        ExitCode.GPU_OUT_OF_MEMORY, f"the GPU's memory is too small for {fewest} per batch: {save_memory(settings)}"
    )


def fill_gpu(inputs: Inputs, device: torch.device, world: World = ALONE, micro_batch: int | None = None) -> Resolved:
    """Return the settings on this device, with so many rows in a micro-batch; without a number, an open micro-batch
    fills the memory that is free on every GPU."""
    settings = share_batch(complete_settings(inputs.run.config.resolved or Resolved(), device), world.size)
    if micro_batch:
        return with_micro_batch(settings, micro_batch)
    if device.type != "cuda":
        return settings
    shape = read_shape(inputs)
    if shape is None:
        return settings
    free = min(int(one) for one in world.gather(torch.tensor(torch.cuda.mem_get_info(device)[0])))
    return grow_micro_batch(inputs.run.config.spec, settings, shape, free)


def train_once(
    inputs: Inputs, settings: Resolved, device: torch.device, checkpoints: Checkpoints, world: World = ALONE
) -> TrainingResult:
    """Load the base, measure it, train, and save and measure the best weights; with mode Evaluate, those of the initial
    adapter in place of a training.

    The trainer is built on the unchanged base even if the training resumes from a checkpoint, because DPO and KTO
    compare it with their reference then; `train` loads the checkpoint's weights.
    """
    spec, reporter = inputs.run.config.spec, inputs.run.reporter
    reset_peak(device)
    resumed = restore_checkpoint(inputs.run, checkpoints, world)
    loop = start_loop(inputs, checkpoints, resumed, world)
    reporter.start.end("checkpoint")
    model, settings = load_model(inputs, settings, device, world)
    reporter.start.end("model")
    if settings.init_lora_weights == EVA and not resumed:  # a checkpoint has the adapter
        order = torch.randperm(len(inputs.train), generator=torch.Generator().manual_seed(settings.seed or 0))
        texts = (as_text(inputs.train[at]) for at in order.tolist())
        start_from_inputs(model, texts, settings.per_device_train_batch_size or 1, inputs.run.on_work)
    tokenizer, scratch = load_tokenizer(inputs.model), inputs.run.workspace / "trainer"
    parts = TrainerParts(model, tokenizer, settings, loop, inputs.train, inputs.validation, scratch)
    teacher = load_teacher(inputs, settings, device, world)
    world.barrier("models", inputs.run.on_work)  # nodes may read at very different speeds
    trainer = build_trainer(spec.objective, parts, build_judge(inputs, settings, device, loop), teacher)
    reporter.start.end("trainer")
    parameters = sum(tensor.numel() for tensor in trained_tensors(model).values())
    reporter.update(resolved=settings, metrics={"trainable_parameters": parameters})
    is_quantised = settings.method == Method.QLORA
    if resumed:
        answer_changed_prompts(inputs, trainer, loop, is_quantised=is_quantised)
    else:
        measure_baseline(inputs, trainer, loop, is_quantised=is_quantised)
    reporter.start.end("baseline")
    if spec.mode is Mode.EVALUATE:
        continue_adapter(model, inputs.initial_weights)
    else:
        trainer.train(str(resumed) if resumed else None)
    loop.stop.raise_if_set()
    result = measure_result(inputs, trainer, parts, parameters, device)
    if world.is_first and settings.method != Method.FULL:
        save_adapters(inputs, model, loop, result.stop_ids)
    return result


@contextmanager
def local_rank_zero_first(name: str, world: World, on_work: Callable[[], None]) -> Iterator[None]:
    """Run the block in each pod's first process, which downloads; then in the others, which find its files."""
    key = f"{name}/{world.node}"
    if world.local_rank:
        world.wait_key(key, on_work)
    yield
    if not world.local_rank:
        world.set_key(key)


def restore_checkpoint(run: RunContext, checkpoints: Checkpoints, world: World) -> Path | None:
    """Return the checkpoint to resume from; the first process chooses it for all."""
    chosen = None
    if not world.is_first:
        chosen = int(world.wait_key("resumed", run.on_work))
    with local_rank_zero_first("checkpoint", world, run.on_work):
        found = checkpoints.restore(chosen)
        if world.is_first:
            world.set_key("resumed", str(checkpoints.last_step))
    if found and world.is_first and count_ranks(found) != world.size:
        note = f"the checkpoint was saved by {count_ranks(found)} processes, not {world.size}: the rows of each step"
        run.reporter.update(progress={"note": f"{note} stay the same, dropout and sampled answers differ"})
    return found


def count_ranks(checkpoint: Path) -> int:
    """Return the number of processes that saved the checkpoint: each wrote its random state."""
    return len(list(checkpoint.glob("rng_state*.pth")))


def start_loop(inputs: Inputs, checkpoints: Checkpoints, resumed: Path | None, world: World = ALONE) -> LoopContext:
    """Return the loop's context: new, without the figures of a try that ran out of memory, or from the checkpoint."""
    run = inputs.run
    history = History(inputs.result / Artifact.METRICS)
    plateau = Plateau.of(run.config.spec.early_stopping)
    saved, reference = SavedRun(BaselineOutputs(), Metrics(), 0.0), run.workspace / REFERENCE
    every = None if inputs.validation else checkpoints.schedule.steps
    kept = KeptWeights(run.workspace / "kept", run.config.spec.checkpoint.keep if world.is_first else 0, every)
    reference.unlink(missing_ok=True)  # of an earlier try
    if resumed:
        restore_reference(resumed, reference)
        history.load(resumed / Artifact.METRICS)
        replay_evaluations(history, plateau)
        restore_best_weights(resumed, inputs.best_weights, plateau)
        saved = SavedRun.read(resumed / SAVED_RUN)
        stopped_at = history.train[-1].step if plateau.is_exhausted else None  # nothing is left to train
        run.reporter.update(
            metrics=saved.metrics.model_dump(exclude_none=True),
            early_stopping=early_stopping_status(plateau, stopped_at),
        )
    else:
        checkpoints.restore_reference(reference)
    kept.restore(resumed, saved.kept, {plateau.best_step: inputs.best_weights})
    return LoopContext(
        reporter=run.reporter,
        stop=AgreedStop(run.stop, world) if world.size > 1 else run.stop,
        history=history,
        plateau=plateau,
        best_weights=inputs.best_weights,
        checkpoints=checkpoints,
        reference=reference,
        before=saved.before,
        world=world,
        began=time.monotonic() - saved.seconds,
        kept=kept,
    )
