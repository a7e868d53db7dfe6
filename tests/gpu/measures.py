"""What the GPU suite measures: one function a section, each of which yields its figures.

Every function runs on the CPU too, with a tiny model and without the figures that only a GPU has; a test runs them so.
"""

import io
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import training_speed
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from machine import Machine, make_checkpoints, write_random_model, write_teacher
from results import Figure, try_figure
from safetensors.torch import load_file
from several_gpus import measure_ranks
from training_bench import Bench, make_rows, make_spec, preference_rows
from transformers import TrainerCallback

from finetune_api.handoff import Outcome
from finetune_api.spec import Objective
from finetune_trainer.models.attention import find_flash_fault
from finetune_trainer.models.device import DRIVER_FILE
from finetune_trainer.models.files.base_model import read_config
from finetune_trainer.models.files.tensor_files import TensorFiles
from finetune_trainer.models.loading import load_for_training
from finetune_trainer.models.memory.estimate import RESERVE, estimate, format_bytes
from finetune_trainer.models.memory.shape import read_shape
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.training.callbacks import save_trained
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.packed import ROW_TOKENS

METHODS = ("QLoRA", "LoRA", "Full")
NO_GPU = "not measured: no GPU"
WITHIN = 0.15
LEAST_OF_PLAIN = 0.97
LARGEST_LOSS_DIFFERENCE = 0.01
"""Relative difference of the loss of packed rows from that of single ones: rounding of 16-bit numbers."""
WARM_UP = 2


def measure_image(machine: Machine) -> Iterator[Figure]:
    """Driver, compiler and a compiled kernel: the facts that the image must bring."""
    driver = (
        DRIVER_FILE.read_text(encoding="utf-8").split("\n")[0] if DRIVER_FILE.exists() else "not measured: no driver"
    )
    yield Figure("driver", driver)
    yield Figure("CUDA of PyTorch", str(torch.version.cuda))
    if not machine.is_gpu:
        yield Figure("compute capability", NO_GPU)
    else:
        yield Figure("compute capability", ".".join(map(str, torch.cuda.get_device_capability(machine.device))))
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "gcc", "gcc", "clang"))), None)
    yield Figure("C compiler", compiler or "none", "one", compiler is not None)
    if not machine.is_gpu:
        yield Figure("a Triton kernel", NO_GPU, "compiled, and right")
        return

    def compile_kernel() -> tuple[str, bool]:
        from triton_kernel import doubled

        given = torch.arange(1000, dtype=torch.float32, device=machine.device)
        is_right = bool(torch.equal(doubled(given), given * 2))
        return "right" if is_right else "wrong", is_right

    yield try_figure("a Triton kernel", "compiled, and right", compile_kernel)


# --- objectives ---------------------------------------------------------------

FEW = {"perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128, "lrSchedulerType": "constant"}
SHORT: dict[str, Any] = {"evaluation": {"steps": 100}}
REWARDS = {
    "rewards": [{"type": "Regex", "pattern": letter} for letter in "aeot"],
    "maxCompletionLength": 10,
    "numGenerations": 4,
}
"""Rewards that differ between the answers of a random model too."""


def prompt_rows(count: int) -> list[dict[str, object]]:
    """Prompts only."""
    return [{"prompt": row["prompt"]} for row in preference_rows(count)]


def text_rows(count: int) -> list[dict[str, object]]:
    """Plain texts."""
    return [{"text": f"{row['prompt']} {row['chosen']}"} for row in preference_rows(count)]


TEACHER = "s3://bucket/teacher"
DISTILLATION = {"teacher": {"uri": TEACHER}, "maxCompletionLength": 10}
VLLM = {"rollouts": {"engine": "VLLM", "gpuMemoryFraction": 0.3}}
Rows = Callable[[int], list[dict[str, object]]]
OBJECTIVES: Mapping[str, tuple[Rows, dict[str, Any]]] = {
    "Instruction": (make_rows, {}),
    "DomainAdaptation": (text_rows, {}),
    "DPO": (preference_rows, {}),
    "KTO": (preference_rows, {}),
    "RewardModel": (preference_rows, {}),
    "RLHF": (prompt_rows, {"rlhf": REWARDS}),
    "Distillation": (prompt_rows, {"distillation": DISTILLATION}),
}


def measure_objectives(
    machine: Machine, methods: Sequence[str] = METHODS, objectives: Sequence[str] = tuple(OBJECTIVES)
) -> Iterator[Figure]:
    """Whole jobs, from rows to a verified result, one for each objective and method."""
    for objective in objectives:
        for method in methods:
            yield _measure_job(machine, f"{objective}, {method}", objective, method)


def measure_rollouts(machine: Machine) -> Iterator[Figure]:
    """Whole jobs whose answers vLLM samples with the weights of each step."""
    if not machine.is_gpu or find_spec("vllm") is None:
        yield Figure("RLHF with vLLM", NO_GPU if not machine.is_gpu else "not measured: no vLLM", "published")
        return
    for method in ("LoRA", "Full"):
        yield _measure_job(machine, f"RLHF with vLLM, {method}", "RLHF", method, {"rlhf": REWARDS | VLLM})


def _measure_job(
    machine: Machine, name: str, objective: str, method: str, others: Mapping[str, Any] | None = None
) -> Figure:
    rows, blocks = OBJECTIVES[objective]
    hyper = FEW | {"maxSteps": machine.steps}
    spec = make_spec(method, **SHORT | blocks | (others or {}), objective=objective, hyperparameters=hyper)
    folder = machine.scratch / f"job-{name}"
    known = {TEACHER: write_teacher(machine)} if objective == "Distillation" else {}
    silent = Reporter("u-1", out=io.StringIO())
    bench = Bench(folder, machine.model, spec, rows=rows(60), reporter=silent, elsewhere=known)
    machine.reset_peak()
    figure = try_figure(name, "published", lambda: _run_job(bench, machine))
    shutil.rmtree(folder, ignore_errors=True)
    return figure


def _run_job(bench: Bench, machine: Machine) -> tuple[str, bool]:
    bench.root.mkdir(parents=True)
    report = bench.run()
    speed = report.metrics.tokens_per_second if report.metrics else None
    words = f"{report.outcome.value}, {speed or 0:.0f} tokens/s, {_peak(machine)}"
    return words, report.outcome is Outcome.PUBLISHED


def _peak(machine: Machine) -> str:
    return f"peak {format_bytes(machine.peak())}" if machine.is_gpu else "peak not measured"


# --- flash attention ----------------------------------------------------------


def measure_attention(machine: Machine) -> Iterator[Figure]:
    """PyTorch's flash kernel against plain attention, values and gradients, as at the start of a training."""
    name = "what keeps the flash kernel from training"
    if not machine.is_gpu:
        yield Figure(name, NO_GPU, "nothing")
        return

    def compare() -> tuple[str, bool]:
        settings = machine.settings("LoRA")
        model = load_for_training(machine.model, settings, machine.device)
        found = find_flash_fault(model, str(settings.precision), machine.device)
        return found or "nothing", found is None

    yield try_figure(name, "nothing", compare)


# --- packed rows --------------------------------------------------------------


def measure_packing(machine: Machine) -> Iterator[Figure]:
    """Packed rows against single ones, with this device's kernels; building the trainer checks the first figure."""
    samples = training_speed.to_samples(machine.model, training_speed.short_pairs(32), machine.length)
    trainer: LoopTrainer | None = None

    def build() -> tuple[str, bool]:
        nonlocal trainer
        settings = machine.settings("LoRA", packing=True)
        trainer = machine.trainer(machine.model, settings, samples, machine.scratch / "packed")
        return f"none, with attention {trainer.model.config._attn_implementation}", True

    yield try_figure("effect of a row on the next one", "none", build)
    if trainer is None:
        return
    required = f"at most {LARGEST_LOSS_DIFFERENCE:.0%}"
    name = "loss of one packed batch against its rows alone"
    yield try_figure(name, required, lambda: _compare_packed(machine, trainer, samples))


def _compare_packed(machine: Machine, trainer: LoopTrainer, samples: Sequence[Any]) -> tuple[str, bool]:
    batch = next(iter(trainer.get_train_dataloader()))
    packed = _token_losses(trainer.model, {name: value for name, value in batch.items() if name != ROW_TOKENS})
    count = int((batch["labels"] != -100).sum())
    rows = [one for one in samples if _is_in(one.input_ids, batch["input_ids"])]
    single = sum(
        _token_losses(
            trainer.model,
            {name: torch.tensor([getattr(one, name)], device=machine.device) for name in ("input_ids", "labels")},
        )
        for one in rows
    )
    difference = abs(packed / single - 1)
    measured = f"{packed:.5g} and {single:.5g} over {count} tokens of {len(rows)} rows: {difference:.2%}"
    return measured, difference <= LARGEST_LOSS_DIFFERENCE


def _is_in(row: Any, lines: torch.Tensor) -> bool:
    wanted = ",".join(map(str, row))
    return any(f",{wanted}," in f",{','.join(map(str, line))}," for line in lines.tolist())


@torch.no_grad()
def _token_losses(model: Any, batch: dict[str, Any]) -> float:
    """Return the summed loss of the trained tokens."""
    labels = batch.pop("labels")
    model.eval()
    logits = model(**batch, use_cache=False).logits[:, :-1].float()
    return float(
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten().to(logits.device), ignore_index=-100, reduction="sum"
        )
    )


# --- resume -------------------------------------------------------------------


def measure_resume(machine: Machine) -> Iterator[Figure]:
    """A resumed training against one that was not interrupted, with the optimiser whose state is paged and in 8 bits.

    A GPU's kernels may add in another order each time: two uninterrupted trainings show by how much. The rank is high
    because bitsandbytes pages no tensor of less than 100,000 values.
    """
    optim = "paged_adamw_8bit" if machine.is_gpu else "adamw_torch"
    settings = machine.settings("QLoRA", optim=optim, total_steps=4, lora_rank=256, lora_alpha=512)
    samples = training_speed.to_samples(machine.model, training_speed.short_pairs(8), machine.length)
    folder = machine.scratch / "resume"
    paged: list[int] = []

    def train(name: str, resumed_from: str | None = None) -> dict[str, torch.Tensor]:
        bench = Bench(folder / "job", machine.model, make_spec("QLoRA", checkpoint={"steps": 1, "saveTotalLimit": 9}))
        checkpoints = make_checkpoints(bench)
        restored = checkpoints.restore(only=2) if resumed_from else None
        trainer = machine.trainer(machine.model, settings, samples, folder / name, checkpoints)
        if restored:
            shutil.copyfile(folder / str(resumed_from) / "metrics.jsonl", folder / name / "metrics.jsonl")
        trainer.train(str(restored) if restored else None)
        state = trainer.optimizer.optimizer.state.values()
        paged.append(sum(any(getattr(value, "is_paged", False) for value in one.values()) for one in state))
        save_trained(trainer.model, folder / f"{name}.safetensors")
        return dict(load_file(folder / f"{name}.safetensors"))

    def compare() -> tuple[str, bool]:
        whole, again = train("whole"), train("again")
        resumed = train("resumed", "again")
        noise, found = _largest_difference(whole, again), _largest_difference(again, resumed)
        is_met = found <= max(2 * noise, 1e-7) and (all(paged) or not machine.is_gpu)
        return f"{found:.3g} (two uninterrupted ones: {noise:.3g}), {min(paged)} tensors with a paged state", is_met

    yield try_figure(f"largest difference of a weight after a resume, {optim}", "at most twice the noise", compare)


def _largest_difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


# --- NF4 ----------------------------------------------------------------------


MOST_DIFFERENT = {"bytes": 1e-5, "values": 1e-4}
"""Shares that may differ: the mean of all scales, whose sum has another order, can move a scale to its next step."""
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Relative differences that are rounding: of sums in FP32, and the last digit in 16 bits."""


def measure_nf4(machine: Machine, sizes: tuple[tuple[int, int], ...] = ((576, 576), (4096, 11008))) -> Iterator[Figure]:
    """4-bit weights made on the device against those made on the CPU, on which merge and gate quantise again."""
    shares = ", ".join(f"at most {share:g} of the {name}" for name, share in MOST_DIFFERENT.items())
    for size in sizes:
        for dtype in ROUNDING:
            name = f"{size[0]} by {size[1]}, {str(dtype).removeprefix('torch.')}"
            yield try_figure(name, shares, partial(_compare_nf4, machine, size, dtype))


def _compare_nf4(machine: Machine, size: tuple[int, int], dtype: torch.dtype) -> tuple[str, bool]:
    torch.manual_seed(0)
    weight = torch.randn(size).mul_(0.02).to(dtype)
    (ours, state), (cpu, cpu_state) = (
        quantize_4bit(weight.to(device), compress_statistics=True, quant_type="nf4")
        for device in (machine.device, torch.device("cpu"))
    )
    values, expected = dequantize_4bit(ours, state).cpu().float(), dequantize_4bit(cpu, cpu_state).float()
    off = (values - expected).abs() > ROUNDING[dtype] * expected.abs()
    different = {"bytes": float((ours.cpu() != cpu).float().mean()), "values": float(off.float().mean())}
    measured = ", ".join(f"{share:.2g} of the {name} differ" for name, share in different.items())
    return measured, all(different[name] <= most for name, most in MOST_DIFFERENT.items())


# --- estimate -----------------------------------------------------------------


def measure_estimates(machine: Machine) -> Iterator[Figure]:
    """The estimate of preflight against the measured peak, on random models."""
    for at, shape in enumerate(machine.shapes):
        for method in METHODS if at == 0 else METHODS[:2]:
            required = f"within {WITHIN:.0%}"
            yield try_figure(f"{shape}, {method}", required, partial(_estimate, machine, shape, method))
        shutil.rmtree(machine.scratch / f"random-{shape}", ignore_errors=True)


def _estimate(machine: Machine, name: str, method: str) -> tuple[str, bool | None]:
    model = write_random_model(machine, name, machine.model)
    settings = machine.settings(method, total_steps=2, gradient_checkpointing=True)
    config = read_config(model)
    with TensorFiles.of_folder(model) as files:
        shape = read_shape(config, {name: tuple(header.shape) for name, header in files.headers.items()})
    assert shape
    expected = estimate(shape, settings, Objective.INSTRUCTION).total - RESERVE
    machine.reset_peak()
    folder = machine.scratch / f"estimate-{model.name}-{method}"
    machine.trainer(model, settings, machine.samples(4, int(config["vocab_size"])), folder).train()
    shutil.rmtree(folder)
    if not machine.is_gpu:
        return f"{NO_GPU} (estimated: {format_bytes(expected)})", None
    peak = machine.peak()
    return f"estimated {format_bytes(expected)}, peak {format_bytes(peak)}: {expected / peak - 1:+.1%}", (
        abs(expected / peak - 1) <= WITHIN
    )


# --- speed --------------------------------------------------------------------


class StepTimes(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Measure the seconds of each step, with the device's work in them."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._began = 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._machine.synchronise()
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._machine.synchronise()
        self.seconds.append(time.perf_counter() - self._began)


def speed_pairs(count: int) -> list[training_speed.Pair]:
    """Return the demo's questions and answers, or short ones without the package that has them."""
    try:
        return training_speed.demo_pairs(count)
    except ImportError:
        return training_speed.short_pairs(count)


def measure_speed(machine: Machine) -> Iterator[Figure]:
    """Tokens a second and peak memory of the trainer's loop and of a plain TRL script, on the same rows."""
    steps = WARM_UP + 2 * machine.steps
    settings = machine.settings(
        "LoRA",
        total_steps=steps,
        per_device_train_batch_size=4,
        global_batch_size=4,
        eval_steps=1000,
        max_length=512,
    )
    pairs = speed_pairs(training_speed.HELD_OUT + 4 * steps)
    found: dict[str, tuple[float, str]] = {}
    for make in (training_speed.our_trainer, training_speed.plain_trainer):
        machine.reset_peak()
        held_out, trained = pairs[: training_speed.HELD_OUT], pairs[training_speed.HELD_OUT :]
        trainer = make(
            machine.model, trained, held_out, settings, machine.scratch / make.__name__, device=machine.device
        )
        times = StepTimes(machine)
        trainer.callback_handler.callbacks.insert(0, times)
        trainer.train()
        tokens = sum(map(len, trainer.train_dataset["input_ids"])) / len(trainer.train_dataset) * 4
        found[make.__name__] = tokens / statistics.median(times.seconds[WARM_UP:]), _peak(machine)
        del trainer
    ours, plain = found["our_trainer"], found["plain_trainer"]
    ratio = ours[0] / plain[0]
    yield Figure("the trainer's loop", f"{ours[0]:.0f} tokens/s, {ours[1]}")
    yield Figure("a plain TRL script", f"{plain[0]:.0f} tokens/s, {plain[1]}")
    yield Figure(
        "ratio", f"{ratio:.3f}", f"at least {LEAST_OF_PLAIN}", ratio >= LEAST_OF_PLAIN if machine.is_gpu else None
    )


SECTIONS: Mapping[str, Callable[[Machine], Iterator[Figure]]] = {
    "Image": measure_image,
    "NF4 on the GPU and on the CPU": measure_nf4,
    "Flash attention": measure_attention,
    "Packed rows": measure_packing,
    "Resume": measure_resume,
    "Objectives and methods": measure_objectives,
    "Answers by vLLM": measure_rollouts,
    "Speed against a plain TRL script": measure_speed,
    "Two GPUs": measure_ranks,
    "Estimate and measured peak": measure_estimates,
}
"""In this order; the longest one comes last, so that a time limit cuts it."""
