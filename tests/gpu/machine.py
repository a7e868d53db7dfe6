"""The device that the suite measures, and trainings on it without preflight."""

import gc
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from loop_bench import make_loop
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_api.status import Resolved
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.models.device import complete_settings, describe_device, peak_memory_bytes
from finetune_trainer.models.files.base_model import read_config
from finetune_trainer.models.loading import load_for_training, load_tokenizer
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.tokenization.samples import Encoded
from finetune_trainer.training.checkpoints import Checkpoints
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import TrainerParts
from finetune_trainer.training.methods.sft import build_sft_trainer

SHAPES: Mapping[str, Mapping[str, int]] = {
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "vocab_size": 32000},
}  # fmt: skip
"""Llamas with the sizes of SmolLM2-135M, Llama 3.2 1B and Llama 2 7B."""


NORM = "model.norm.weight"


@dataclass(frozen=True)
class Machine:
    """A device, a folder for scratch files, and the sizes to measure; those of a test are small."""

    device: torch.device
    scratch: Path
    model: Path
    """A language model with tokenizer and chat template."""
    steps: int = 6
    length: int = 512
    """Tokens of each row in the sections about memory and speed."""
    shapes: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: SHAPES)
    ranks: int = 1
    """Processes that train together: as many as there are GPUs, and at most two."""
    forks: bool = False
    """Whether a process that has loaded the libraries may start others by forking itself: not if they are CUDA's."""

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def start_method(self) -> str:
        """How the processes start that train together."""
        if self.is_gpu:
            return "forkserver" if self.forks else "spawn"
        return "fork"

    @property
    def name(self) -> str:
        """The card's name."""
        return describe_device(self.device)[0]

    def settings(self, method: str, **changes: Any) -> Resolved:
        """Return the settings of a short training, with number format and optimiser of the device."""
        settings = Resolved(
            method=method,
            total_steps=self.steps,
            learning_rate=1e-5 if method == "Full" else 2e-4,
            lr_scheduler_type="constant",
            warmup_steps=0.0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=1,
            global_batch_size=2,
            max_length=self.length,
            gradient_checkpointing=method != "LoRA",
            seed=42,
            eval_steps=self.steps,
            lora_rank=16,
            lora_alpha=32,
            lora_dropout=0.0,
            double_quant=True,
        )
        return complete_settings(settings.model_copy(update=changes), self.device)

    def samples(self, count: int, vocabulary: int) -> list[Encoded]:
        """Return rows of random tokens, every one trained, each of the machine's length."""
        source = torch.Generator().manual_seed(5)
        rows = torch.randint(5, vocabulary, (count, self.length), generator=source).tolist()
        return [Encoded(row, list(row), self.length) for row in rows]

    def trainer(
        self,
        model: Path,
        settings: Resolved,
        samples: Sequence[Encoded],
        folder: Path,
        checkpoints: Checkpoints | None = None,
    ) -> LoopTrainer:
        """Return the trainer of a pod, on its own folder."""
        folder.mkdir(parents=True, exist_ok=True)
        loop = replace(make_loop(folder), checkpoints=checkpoints)
        loaded = load_for_training(model, settings, self.device)
        parts = TrainerParts(loaded, load_tokenizer(model), settings, loop, samples, [], folder / "scratch")
        return build_sft_trainer(parts)

    def reset_peak(self) -> None:
        """Start a new measurement of memory."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Return the peak of allocated memory since the last reset; without a GPU, of the process."""
        return peak_memory_bytes(self.device)

    def synchronise(self) -> None:
        """Wait for the device, so that a clock shows what it has done."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)


def write_random_model(machine: Machine, name: str, tokenizer: Path, *, has_few_tokens: bool = False) -> Path:
    """Write a random Llama of one of the machine's shapes in BF16, with the files of the model's tokenizer.

    With few tokens, those of the tokenizer's model: what it writes is text then, and rewards differ.
    """
    folder = machine.scratch / f"random-{name}"
    if not folder.exists():
        shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
        torch.manual_seed(0)
        few = {"vocab_size": read_config(tokenizer)["vocab_size"]} if has_few_tokens else {}
        shape = {**machine.shapes[name], **few}
        config = LlamaConfig(**shape, tie_word_embeddings=False, pad_token_id=2, max_position_embeddings=4096)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with machine.device:
                LlamaForCausalLM(config).save_pretrained(folder)
        finally:
            torch.set_default_dtype(before)
    return folder


def write_teacher(machine: Machine) -> Path:
    """Write a copy of the model that is less sure of each token: half of the last norm halves every logit."""
    folder = machine.scratch / "teacher"
    if not folder.exists():
        shutil.copytree(machine.model, folder)
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            if NORM in tensors:
                save_file(tensors | {NORM: tensors[NORM] / 2}, file, {"format": "pt"})
    return folder


def make_checkpoints(bench: Any) -> Checkpoints:
    """Return the checkpoints of a job on local folders."""
    for name in ("workspace", "output"):
        (bench.root / name).mkdir(parents=True, exist_ok=True)
    reporter = Reporter("u-1", out=io.StringIO())
    run = RunContext(bench.config(), bench.storage, bench.root / "workspace", reporter, StopFlag())
    return Checkpoints(run, "base", {})
