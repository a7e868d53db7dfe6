"""Speed of the training loop against a plain TRL script, and of packed rows against padded ones, as ratios.

python tests/bench/training_speed.py [--only tiny]; exits with 1 if a ratio is below the required one.

Two trainings on one thread each take their steps in turn, on the same rows in the same order, and measure the same
held-out rows every ten steps, in batches as a job takes them: with fewer than 30 micro-batches of held-out rows these
are smaller, so that the verdict has an interval. The plain script logs every ten steps, as is TRL's default, and keeps
nothing; ours logs every step and writes the best weights, as in a pod.

Processor time is compared, which other work on the machine changes less than the clock's; the clock's ratio, which
includes waiting, is shown next to it. A ratio is the median over blocks of ten steps.
"""

# ruff: noqa: E402 - the modules' folders, and what torch reads when it is imported, are set before the imports

import argparse
import itertools
import logging
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads must not spin while the other one trains
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("fixtures", "demo")]

import torch
from data import field_texts, write_model
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from loop_bench import CPU, make_loop, make_settings
from peft import LoraConfig
from tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from finetune_api.status import Resolved
from finetune_trainer.data.rows import ChatRow, DataFormat, Message, Source
from finetune_trainer.models.loading import load_for_training, load_tokenizer
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import Encoded
from finetune_trainer.training.methods.parts import TrainerParts, eval_batch_size
from finetune_trainer.training.methods.sft import build_sft_trainer

LEAST_OF_PLAIN = 0.97
LEAST_OF_PADDED = 2.0
BLOCK = 10
WARM_UP = 3
HELD_OUT = 16
ROUNDS = 8
FEW_ROUNDS = 2
LARGEST_DIFFERENCE = 0.02
NAME_WIDTH = 44
Pair = tuple[str, str]
Times = tuple[float, float]
"""Seconds by the processor and by the clock."""


def now() -> Times:
    """Both times."""
    return time.process_time(), time.perf_counter()


@dataclass
class Turn(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Let two trainings take their steps in turn, and time those of one."""

    mine: threading.Semaphore
    other: threading.Semaphore
    times: list[Times] = field(default_factory=list)
    _began: Times = (0.0, 0.0)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._wait()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._pass_on()
        self._wait()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._pass_on()

    def _wait(self) -> None:
        self.mine.acquire()
        self._began = now()

    def _pass_on(self) -> None:
        processor, clock = now()
        self.times.append((processor - self._began[0], clock - self._began[1]))
        self.other.release()


def take_turns(first: Trainer, second: Trainer) -> tuple[list[Times], list[Times]]:
    """Train both, a step each in turn; return the times of every step after the warm-up."""
    starts, waits = threading.Semaphore(1), threading.Semaphore(0)
    turns = [Turn(starts, waits), Turn(waits, starts)]

    def run(trainer: Trainer, turn: Turn) -> None:
        trainer.callback_handler.callbacks.insert(0, turn)
        try:
            trainer.train()
        finally:
            turn.other.release(trainer.args.max_steps)  # an end ahead of time must not stop the other one

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, (first, second), turns))
    return turns[0].times[1 + WARM_UP :], turns[1].times[1 + WARM_UP :]


def rates_in_blocks(work: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """Work a second over each block, in which what a loop does only now and then has its share."""
    blocks = [slice(at, at + BLOCK) for at in range(0, len(work) - BLOCK + 1, BLOCK)]
    return [sum(work[block]) / sum(seconds[block]) for block in blocks]


@dataclass
class Tally:
    """The work and the times of two trainings, ours first."""

    work: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    times: tuple[list[Times], list[Times]] = field(default_factory=lambda: ([], []))

    def add(self, work: Sequence[list[float]], times: Sequence[list[Times]]) -> None:
        """One more run of both."""
        for side in (0, 1):
            self.work[side].extend(work[side])
            self.times[side].extend(times[side])

    def rate(self, side: int) -> float:
        """Work a second of processor time."""
        return sum(self.work[side]) / sum(processor for processor, _ in self.times[side])

    def ratio(self, clock: int) -> float:
        """Ours to the other's, by the processor (0) or by the clock (1)."""
        sides = [rates_in_blocks(self.work[side], [one[clock] for one in self.times[side]]) for side in (0, 1)]
        return statistics.median(ours / other for ours, other in zip(*sides, strict=True))


def demo_pairs(count: int) -> list[Pair]:
    """Questions and answers as the demo trains on."""
    texts = list(field_texts())[:count]
    return [(f"What does the field `{name}` of a Kubernetes {kind} do?", text) for kind, name, text in texts]


def short_pairs(count: int) -> list[Pair]:
    """Short rows: an answer is a few words, seldom more."""
    source = random.Random(7)
    words = ["blue", "red", "green", "and", "a", "the", "sky", "sea", "rose", "snow", "coal", "when", "light", "falls"]
    lengths = [min(1 + int(source.lognormvariate(0.7, 0.7)), 20) for _ in range(count)]
    return [(f"Colour of {source.choice(words)}?", " ".join(source.choices(words, k=length))) for length in lengths]


def to_samples(model: Path, pairs: Sequence[Pair], longest: int) -> list[Encoded]:
    """The rows as preflight and training make them."""
    labeler = Labeler(model)
    rows = [
        ChatRow([Message(role="user", content=asked), Message(role="assistant", content=said)], Source("rows", line),
                DataFormat.OPENAI)
        for line, (asked, said) in enumerate(pairs, 1)
    ]  # fmt: skip
    return [sample for row in rows for sample in labeler.encode(row, "Instruction", longest)]


def our_trainer(
    model: Path,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    settings: Resolved,
    scratch: Path,
    *,
    device: torch.device = CPU,
) -> Trainer:
    """The loop of a training pod."""
    scratch.mkdir(parents=True, exist_ok=True)
    parts = TrainerParts(
        load_for_training(model, settings, device),
        load_tokenizer(model),
        settings,
        make_loop(scratch),
        to_samples(model, pairs, settings.max_length or 0),
        to_samples(model, held_out, settings.max_length or 0),
        scratch,
    )
    return build_sft_trainer(parts)


def to_columns(pairs: Sequence[Pair]) -> Dataset:
    """The rows as TRL takes them, which trains the completion alone."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": asked}],
                "completion": [{"role": "assistant", "content": said}],
            }
            for asked, said in pairs
        ]
    )


def plain_trainer(
    model: Path,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    settings: Resolved,
    scratch: Path,
    *,
    device: torch.device = CPU,
) -> Trainer:
    """What people write with TRL for the same training."""
    is_16_bit = settings.precision == "BF16"
    adapter = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    arguments = SFTConfig(
        output_dir=str(scratch),
        max_steps=settings.total_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        per_device_eval_batch_size=eval_batch_size(range(len(held_out)), settings),
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        gradient_checkpointing=settings.gradient_checkpointing,
        eval_strategy="steps",
        eval_steps=settings.eval_steps,
        optim=settings.optim,
        seed=settings.seed,
        data_seed=settings.seed,
        max_length=settings.max_length,
        bf16=is_16_bit,
        use_cpu=device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16 if is_16_bit else torch.float32),
        args=arguments,
        train_dataset=to_columns(pairs),
        eval_dataset=to_columns(held_out),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=adapter if settings.method == "LoRA" else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@dataclass(frozen=True)
class Result:
    """One line of the table: a tally, and the ratio that it must reach where it must."""

    name: str
    unit: str
    tally: Tally
    least: float | None

    @property
    def is_met(self) -> bool:
        return self.least is None or self.tally.ratio(0) >= self.least

    def __str__(self) -> str:
        least = "-" if self.least is None else f"{self.least:.2f}"
        rates = f"{self.tally.rate(0):>10.2f}{self.tally.rate(1):>10.2f}  {self.unit:<9}"
        ratios = f"{self.tally.ratio(0):>7.3f}{least:>7}{self.tally.ratio(1):>10.3f}"
        return f"{self.name:<{NAME_WIDTH}}{rates}{ratios}{'' if self.is_met else '  MISSED'}"


HEADER = f"{'':<{NAME_WIDTH}}{'ours':>10}{'other':>10}  {'':<9}{'ratio':>7}{'least':>7}{'by clock':>10}"


def against_plain(
    name: str, model: Path, settings: Resolved, pairs: Sequence[Pair], scratch: Path, *, rounds: int
) -> Result:
    """Steps a second of our loop and of the plain script.

    Where a model's weights happen to lie makes several percent, and who goes first one or two: both trainings are
    built anew for each round, and each goes first in every other one.
    """
    tally = Tally()
    held_out, trained = pairs[:HELD_OUT], pairs[HELD_OUT:]
    for order in (1, -1) * (rounds // 2):
        trainers = [
            make(model, trained, held_out, settings, scratch / make.__name__) for make in (our_trainer, plain_trainer)
        ]
        require_equal_tokens(*trainers)
        times = take_turns(*trainers[::order])[::order]
        tally.add([[1.0] * len(one) for one in times], times)
    return Result(f"{name}, {settings.method}: our loop / plain TRL", "steps/s", tally, LEAST_OF_PLAIN)


def require_equal_tokens(ours: Trainer, plain: Trainer) -> None:
    """The template may end a row with a line break that we do not train; more than that would be another data set."""
    for kind in ("train_dataset", "eval_dataset"):
        tokens = [sum(map(len, getattr(trainer, kind)["input_ids"])) for trainer in (ours, plain)]
        if abs(tokens[0] / tokens[1] - 1) > LARGEST_DIFFERENCE:
            raise SystemExit(f"the two do not have the same rows: {tokens[0]} and {tokens[1]} tokens")


def against_padding(
    name: str, model: Path, settings: Resolved, scratch: Path, *, rounds: int, least: float | None
) -> Result:
    """Tokens a second of one job with packing Always and Never: the same 16 rows or so make a step.

    How the padded side takes them, in micro-batches or all at once, is for the settings to say.
    """
    pairs = short_pairs(16 * (settings.total_steps or 0))
    one_sequence = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "global_batch_size": 1}
    sides = {"packed": settings.model_copy(update=one_sequence | {"packing": True}), "padded": settings}
    tally = Tally()
    for order in (1, -1) * (rounds // 2):
        trainers = [our_trainer(model, pairs, [], one, scratch / side) for side, one in sides.items()]
        times = take_turns(*trainers[::order])[::order]
        tally.add([tokens_by_step(trainer) for trainer in trainers], times)
    batch = f"{settings.per_device_train_batch_size} x {settings.gradient_accumulation_steps}"
    return Result(f"{name}, {settings.method}: packed / padded {batch}", "tokens/s", tally, least)


def tokens_by_step(trainer: Trainer) -> list[float]:
    """Tokens of each step after the warm-up, without padding."""
    seen = [0.0, *(entry["num_tokens"] for entry in trainer.state.log_history if "loss" in entry)]
    return [after - before for before, after in itertools.pairwise(seen)][WARM_UP:]


def settings_for(method: str, steps: int, *, batch: int, accumulation: int, **changes: Any) -> Resolved:
    """The defaults of a job in which a step holds so many rows."""
    return make_settings(
        method,
        total_steps=WARM_UP + steps,
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        global_batch_size=batch * accumulation,
        max_length=512,
        eval_steps=BLOCK,
        lora_rank=16,
        lora_alpha=32,
        lora_dropout=0.05,
        **changes,
    )


def measure(scratch: Path, only: str) -> Iterator[Result]:
    """Every comparison, the tiny model first.

    A large model on a CPU is bound by arithmetic, and packing saves it the padding alone: that ratio is only shown. So
    is the one to 16 padded rows at once, which a job has only where it sets perDeviceTrainBatchSize.
    """
    if only != "135M":
        tiny = make_tiny_model(scratch / "tiny")
        pairs = demo_pairs(400)
        for method in ("LoRA", "Full"):
            settings = settings_for(method, 40, batch=4, accumulation=1)
            yield against_plain("tiny", tiny, settings, pairs, scratch, rounds=ROUNDS)
        defaults = settings_for("LoRA", 20, batch=2, accumulation=8)
        yield against_padding("tiny", tiny, defaults, scratch, rounds=ROUNDS, least=LEAST_OF_PADDED)
        at_once = settings_for("LoRA", 20, batch=16, accumulation=1)
        yield against_padding("tiny", tiny, at_once, scratch, rounds=ROUNDS, least=None)
    if only != "tiny":
        model = scratch / "135M"
        write_model(model)
        settings = settings_for("LoRA", 20, batch=2, accumulation=1)
        yield against_plain("SmolLM2-135M", model, settings, short_pairs(100), scratch, rounds=FEW_ROUNDS)
        defaults = settings_for("LoRA", 10, batch=2, accumulation=8)
        yield against_padding("SmolLM2-135M", model, defaults, scratch, rounds=FEW_ROUNDS, least=None)


def main() -> None:
    """Print the table; exit with 1 if a ratio is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["tiny", "135M", "all"], default="all")
    parser.add_argument("--scratch", type=Path, help="keeps the 135M model here for the next time")
    arguments = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)  # a step that waits for a second thread waits for whatever else the machine does
    logging.getLogger("trl").setLevel(logging.ERROR)
    results = []
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = arguments.scratch or Path(folder)
        scratch.mkdir(parents=True, exist_ok=True)
        for result in measure(scratch, arguments.only):
            print(result, flush=True)
            results.append(result)
    sys.exit(0 if all(result.is_met for result in results) else 1)


if __name__ == "__main__":
    main()
