"""The formats of training files, and how one is recognised."""

from collections.abc import Mapping
from typing import Any

from finetune_client.errors import WrongUse
from kubectl_finetune.importing import axolotl, llama_factory, openai, trl
from kubectl_finetune.importing.rows import Format

FORMATS: Mapping[str, Format] = {one.FORMAT.name: one.FORMAT for one in (axolotl, llama_factory, trl, openai)}
NAMES = ", ".join(FORMATS)
OTHERS = {
    "distributed_type": ("a configuration of accelerate", "give the file of the training, and the GPUs with --gpus"),
    "train_micro_batch_size_per_gpu": (
        "a configuration of DeepSpeed",
        "give the file of the training, and the GPUs with --gpus",
    ),
    "dist_config": ("of the new format of LLaMA-Factory (v1)", "write the training with model_name_or_path and stage"),
    "train_dataset": (
        "of the new format of LLaMA-Factory (v1)",
        "write the training with model_name_or_path and stage",
    ),
    "apiVersion": ("a manifest of Kubernetes", "check it with kubectl finetune validate"),
    "provider": ("a file of axolotl's cloud runner", "give the file of the training"),
}
"""Files that belong to a training file, by a key that only they have."""


def choose_format(name: str, values: Mapping[str, Any], asked: str) -> Format:
    """Return the format that was asked for, or the one whose own keys the file has most of."""
    if asked:
        return FORMATS[asked]
    for key, (what, fix) in OTHERS.items():
        if key in values:
            raise WrongUse(f"{name} is {what}, which has no training to import", fix)
    counts = {one.name: len(one.signs & set(values)) for one in FORMATS.values()}
    best = max(counts.values())
    found = [one for one, count in counts.items() if count == best]
    if best == 0 or len(found) > 1:
        raise WrongUse(
            f"{name} is of no known format: its keys are {', '.join(list(values)[:6])}", f"add --from {NAMES}"
        )
    return FORMATS[found[0]]
