"""`finetune-trainer merge`: an adapter merged into its base on this machine, as a job merges and validates it."""

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_api.handoff import ExitCode
from finetune_api.inputs.claims import is_claim_uri
from finetune_api.spec import Precision
from finetune_api.text.printable import printable
from finetune_trainer.commands.merge_inputs import check_base, open_adapter, read_compared
from finetune_trainer.commands.model_place import SCHEMES, open_base
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.evaluation.gate_rules import LARGEST_MEAN_KL, ValidationResult
from finetune_trainer.models.memory.estimate import format_bytes
from finetune_trainer.sigterm import StopFlag

UNCHECKED = "not at all (--no-validate): neither the files nor the answers of the merged model were checked"


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """The options of the command; `rows` is a file of rows to compare on."""

    precision: Precision = Precision.AUTO
    rows: str | None = None
    validate: bool = True


def merge_adapter(base_name: str, adapter_name: str, output_name: str, options: MergeOptions, stop: StopFlag) -> None:
    """Merge and compare in a hidden folder, and move the model to the output only if it passes the gate."""
    output = require_free(output_name)
    with tempfile.TemporaryDirectory(prefix="finetune-merge-") as scratch, hidden_folder(output) as hidden:
        adapter = open_adapter(adapter_name, stop, Path(scratch) / "fetched")
        base = open_base(base_name, "BASE", stop, Path(scratch))
        origin = check_base(adapter, base_name, base, stop)
        compared = read_compared(adapter, base.folder, options.rows, is_asked=options.validate)
        # As in the training: PyTorch reads it when it is imported.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        from finetune_trainer.commands.local_merge import merge_folders  # noqa: PLC0415 - imports torch

        precision = None if options.precision is Precision.AUTO else options.precision.value
        merged = merge_folders(base.folder, adapter.weights, compared, precision, hidden / "model", stop=stop)
        move_model(hidden / "model", output)
    size = f"{merged.tensors} tensors in {merged.precision}, {format_bytes(merged.size)}"
    lines = [
        f"{output}: {adapter_name} merged into {base_name}, {size}",
        f"base: {origin}",
        f"compared: {describe_result(merged.result, compared.source) if merged.result else UNCHECKED}",
        f"load it with {merged.loader}.from_pretrained({str(output)!r})",
        f"try it with {shlex.join(['finetune-trainer', 'chat', str(output), '--base', base_name])}",
    ]
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))


def require_free(name: str) -> Path:
    """Return the output's folder; refuse a store, and a folder with files, which would be lost or mixed."""
    folder = Path(name)
    if name.startswith(SCHEMES) or is_claim_uri(name):
        raise InvalidConfig(f"OUTPUT {name}: the model is written to this machine: name a folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        state = "is not empty" if folder.is_dir() else "is a file"
        raise TrainerError(ExitCode.OUTPUT_CONFLICT, f"OUTPUT {name} {state}; nothing was changed: name a new folder")
    return folder


@contextmanager
def hidden_folder(output: Path) -> Iterator[Path]:
    """Make a folder on the output's disk, which is removed at the end, whatever happens."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=".merge-", dir=output if output.is_dir() else output.parent)
    except OSError as error:
        raise InvalidConfig(f"OUTPUT {output} cannot be written: {error.strerror}") from None
    with made as name:
        yield Path(name)


def move_model(model: Path, output: Path) -> None:
    """Move the model to the output; an existing folder is kept, because it can be a mount point."""
    if not output.is_dir():
        model.replace(output)
        return
    for path in sorted(model.iterdir()):
        path.replace(output / path.name)


def describe_result(result: ValidationResult, source: str) -> str:
    """Return the difference that the gate found, in one line."""
    kl, same, largest = result.mean_kl or 0.0, result.top1_agreement or 0.0, result.largest_difference or 0.0
    return (
        f"with base and adapter on {result.tokens} tokens of {source}: mean KL divergence {kl:.2g} nats per token "
        f"(required: below {LARGEST_MEAN_KL}), the same most likely token on {100 * same:.1f} %, largest difference of "
        f"a log-probability {largest:.2g}"
    )
