"""Merge the trained weights into the base's files, one tensor after another.

The whole model is never in memory, only the shard that is being written.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file

from finetune_api.handoff import ADAPTER_WEIGHTS
from finetune_trainer.models.adapters.factors import PREFIX, parse_factor
from finetune_trainer.models.adapters.patterns import find_value
from finetune_trainer.models.adapters.whole_names import is_of_module, saved_modules
from finetune_trainer.models.files.base_model import ADAPTER_CONFIG, CONFIG, INDEX, WEIGHTS, read_config
from finetune_trainer.models.files.tensor_files import Header, TensorFiles
from finetune_trainer.models.loading import DTYPES

SHARD_BYTES = 2 * 1024**3
BLOCK_VALUES = 16 * 1024**2
"""Number of values of a tensor that are merged at a time, in FP32."""
COPIED = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Files without weights that a server loads with the model; the last three of one for images or sound."""
DTYPE_KEYS = ("dtype", "torch_dtype")
CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt"})
NAMES = {precision: str(dtype).removeprefix("torch.") for precision, dtype in DTYPES.items()}
STORED = {"FP32": "F32", "BF16": "BF16", "FP16": "F16"}
"""The names of number formats in files of weights."""

Make = Callable[[str, torch.Tensor], torch.Tensor]
"""Returns the values to write, from a tensor's name and the base's values."""


@dataclass(frozen=True)
class Nf4:
    """QLoRA's quantisation of the base: the linear layers in NF4, and the number format they compute in."""

    modules: frozenset[str]
    double_quant: bool
    compute: torch.dtype

    def as_in(self, headers: Mapping[str, Header]) -> "Nf4":
        """Return the same layers by their names in the base's files; raises Unmapped."""
        names = {_find_tensor(module, headers).removesuffix(".weight") for module in self.modules}
        return replace(self, modules=frozenset(names))

    def through(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight as the 4-bit layer computes with it; other tensors are returned unchanged."""
        if name.removesuffix(".weight") not in self.modules:
            return weight
        packed, state = quantize_4bit(
            weight.to(self.compute).contiguous(), compress_statistics=self.double_quant, quant_type="nf4"
        )
        values: torch.Tensor = dequantize_4bit(packed, state)
        return values.to(self.compute).view(weight.shape)


@dataclass(frozen=True)
class Update:
    """The adapter's update of one weight: `left @ right`, in the weight's own shape."""

    left: torch.Tensor
    right: torch.Tensor

    def add_to(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the sum, computed in FP32 and rounded once, a block of rows at a time."""
        merged = torch.empty(weight.shape, dtype=dtype)
        rows = max(1, BLOCK_VALUES // max(1, weight.shape[-1]))
        for at in range(0, len(weight), rows):
            block = slice(at, at + rows)
            merged[block] = (weight[block].float() + self.left[block] @ self.right).to(dtype)
        return merged


@dataclass(frozen=True)
class Merge:
    """The full model, tensor by tensor, to write it or to check the written files."""

    files: TensorFiles
    names: list[str]
    precision: str
    _make: Make

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor of the full model; tensors that hold no weights are the base's."""
        stored = self.files.read(name)
        return self._make(name, stored) if self.files.headers[name].is_floating else stored

    def write(self, output: Path, on_work: Callable[[], None]) -> None:
        """Write all tensors, in shards of at most 2 GiB or the size of the base's largest file, if that is less."""
        output.mkdir(parents=True, exist_ok=True)
        width = DTYPES[self.precision].itemsize
        shards = list(_in_shards(self.files, self.names, min(SHARD_BYTES, self.files.largest_file), width))
        where: dict[str, str] = {}
        for at, shard in enumerate(shards, 1):
            file = WEIGHTS if len(shards) == 1 else f"model-{at:05}-of-{len(shards):05}.safetensors"
            tensors = {}
            for name in shard:
                on_work()
                tensors[name] = self.tensor(name)
            save_file(tensors, output / file, metadata={"format": "pt"})
            where |= dict.fromkeys(shard, file)
        if len(shards) > 1:
            _write_index(output, where, sum(self.files.headers[name].size(width) for name in self.names))


@contextmanager
def open_adapter_merge(base: Path, adapter: Path, precision: str, nf4: Nf4 | None = None) -> Iterator[Merge]:
    """Open the merge of an adapter into its base, with `nf4` into the dequantised base; raises Unmapped.

    Modules that were trained in full replace the base's.
    """
    (factors, whole), dtype = read_adapter(adapter), DTYPES[precision]
    with TensorFiles.of_folder(base) as files:
        updates, replaced = {}, _by_file_name(whole, files.headers)
        for module, pair in factors.items():
            name = _find_tensor(module, files.headers)
            updates[name] = pair.update(files.headers[name].shape, is_conv1d=is_conv1d(base))
        through = nf4.as_in(files.headers).through if nf4 else None

        def make(name: str, weight: torch.Tensor) -> torch.Tensor:
            if name in replaced:
                return replaced[name].to(dtype)
            weight = through(name, weight) if through else weight
            return updates[name].add_to(weight, dtype) if name in updates else weight.to(dtype)

        yield Merge(files, list(files.headers), precision, make)


@contextmanager
def open_full_merge(base: Path, weights: Path, precision: str) -> Iterator[Merge]:
    """Open the merge of a fully tuned model: trained weights replace the base's; raises Unmapped."""
    dtype = DTYPES[precision]
    with TensorFiles.of_folder(base) as files, TensorFiles(weights) as trained:
        sources = {_find_tensor(name.removesuffix(".weight"), files.headers, name): name for name in trained.headers}
        kept = [name for name in files.headers if name in sources or not _is_tied_copy(name, files)]

        def make(name: str, weight: torch.Tensor) -> torch.Tensor:
            return (trained.read(sources[name]) if name in sources else weight).to(dtype)

        yield Merge(files, kept, precision, make)


def add_ignored(base: Path, output: Path, patterns: Sequence[str], precision: str) -> None:
    """Add a file with the base's tensors that the library does not load, by its patterns of their names, to a model
    that it wrote: for example layers that predict further tokens, which servers use."""
    with TensorFiles.of_folder(base) as files, TensorFiles.of_folder(output) as written:
        names = [name for name in files.headers if any(re.search(one, name) for one in patterns)]
        added = {name: files.read(name) for name in names if name not in written.headers}
        own, width = list(written.headers), DTYPES[precision].itemsize
        total = sum(header.size() for header in written.headers.values())
        total += sum(files.headers[name].size(width) for name in added)
    if not added:
        return
    index = output / INDEX
    where = json.loads(index.read_bytes())["weight_map"] if index.is_file() else dict.fromkeys(own, WEIGHTS)
    before = sorted(set(where.values()))
    *after, last = (f"model-{at:05}-of-{len(before) + 1:05}.safetensors" for at in range(1, len(before) + 2))
    renamed = dict(zip(before, after, strict=True))
    for old, new in renamed.items():
        (output / old).rename(output / new)
    dtype = DTYPES[precision]
    tensors = {name: one.to(dtype) if one.is_floating_point() else one for name, one in added.items()}
    save_file(tensors, output / last, metadata={"format": "pt"})
    where = {name: renamed[file] for name, file in where.items()} | dict.fromkeys(added, last)
    _write_index(output, where, total)


def stored_precision(base: Path) -> str:
    """Return the number format in which the base model is stored: by its config or that of its text part, else by most
    of its weights; FP32 for any other."""
    config = read_config(base)
    parts = (config, config.get("text_config") or {})
    named = next((part[key] for part in parts for key in DTYPE_KEYS if part.get(key)), None)
    if named is None:
        with TensorFiles.of_folder(base) as files:
            sizes: Counter[str] = Counter()
            for header in files.headers.values():
                sizes[header.dtype] += math.prod(header.shape)
        named = sizes.most_common(1)[0][0]
    known = {name: precision for names in (NAMES, STORED) for precision, name in names.items()}
    return known.get(str(named), "FP32")


@dataclass(frozen=True)
class Factors:
    """The two factors of one module, with the scale in `b`; `b @ a` is `(out, in)`, for an embedding transposed."""

    a: torch.Tensor
    b: torch.Tensor

    def update(self, shape: tuple[int, ...], *, is_conv1d: bool) -> Update:
        """Return the update of a weight of that shape; a Conv1D (as in GPT-2) and an embedding are transposed."""
        natural = (self.b.shape[0], self.a.shape[1])
        if natural == shape and not (natural == natural[::-1] and is_conv1d):
            return Update(self.b, self.a)
        if natural[::-1] == shape:
            return Update(self.a.T, self.b.T)
        raise Unmapped(f"an update of {natural} does not fit a tensor of {shape}")


def read_adapter(adapter: Path) -> tuple[dict[str, Factors], dict[str, torch.Tensor]]:
    """Return the adapter's factors by the name of their module, and the tensors of modules trained in full."""
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if config.get("use_dora"):
        raise Unmapped("its modules have magnitudes")
    found: dict[str, dict[str, torch.Tensor]] = {}
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    modules = saved_modules(config, tensors)
    whole = {name.removeprefix(PREFIX): tensors.pop(name) for name in [*tensors] if is_of_module(name, modules)}
    for key, tensor in tensors.items():
        factor = parse_factor(key)
        if factor is None:
            raise Unmapped(f"its tensor {key} is not a factor of a low-rank update")
        if factor.is_of_experts:
            raise Unmapped("it is also on experts, of which the base's files have one matrix each")
        found.setdefault(factor.module, {})["A" if factor.is_first else "B"] = tensor.float()
    single = [module for module, one in found.items() if len(one) != 2]
    if single:
        raise Unmapped(f"{single[0]} lacks one of its two factors")
    scaled = {module: one["B"] * _scale(config, module, one["A"].shape[0]) for module, one in found.items()}
    return {module: Factors(one["A"], scaled[module]) for module, one in found.items()}, whole


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = find_value(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def is_conv1d(base: Path) -> bool:
    """Return whether the architecture stores its linear layers as Conv1D, with the inputs first."""
    return read_config(base).get("model_type") in CONV1D


def _find_tensor(module: str, headers: Mapping[str, Header], name: str | None = None) -> str:
    """Return the base's tensor of that module; files may omit the prefix of the model around the decoder."""
    own = name or f"{module}.weight"
    for candidate in (own, own.partition(".")[2]):
        if candidate in headers:
            return candidate
    raise Unmapped(f"the base's files have no tensor {own}")


def _by_file_name(whole: Mapping[str, torch.Tensor], headers: Mapping[str, Header]) -> dict[str, torch.Tensor]:
    """Return the tensors by their names in the base's files, which may have one of two tied ones; raises Unmapped."""
    found = {}
    for own, values in whole.items():
        try:
            name = _find_tensor(own.removesuffix(".weight"), headers, own)
        except Unmapped:
            if sum(torch.equal(values, one) for one in whole.values()) > 1:
                continue
            raise
        if headers[name].shape != tuple(values.shape):
            raise Unmapped(f"{own} of {tuple(values.shape)} does not fit a tensor of {headers[name].shape}")
        found[name] = values
    return found


def _is_tied_copy(name: str, files: TensorFiles) -> bool:
    """Return whether it is a copy of the embeddings as the output head, which would differ from the trained ones.

    A configuration does not name that they are tied if this is the architecture's default.
    """
    if name != "lm_head.weight":
        return False
    others = (other for other, header in files.headers.items() if other != name and header == files.headers[name])
    return any(torch.equal(files.read(name), files.read(other)) for other in others)


def _in_shards(files: TensorFiles, names: list[str], limit: int, width: int) -> Iterator[list[str]]:
    shard: list[str] = []
    filled = 0
    for name in names:
        size = files.headers[name].size(width)
        if shard and filled + size > limit:
            yield shard
            shard, filled = [], 0
        shard.append(name)
        filled += size
    yield shard


def _write_index(output: Path, where: Mapping[str, str], total: int) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (output / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def copy_settings(base: Path, output: Path, precision: str) -> None:
    """Write the base's configuration with the number format of the merge."""
    config = read_config(base)
    _set_dtype(config, NAMES[precision])
    config.pop("_name_or_path", None)
    (output / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def copy_companions(base: Path, output: Path) -> None:
    """Copy the base's settings of generation and of processors, which no training changes."""
    for name in COPIED:
        if (base / name).is_file():
            (output / name).write_bytes((base / name).read_bytes())


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Set the number format in the keys that the base uses, also in the parts of a composed model."""
    keys = [key for key in DTYPE_KEYS if key in config]
    config |= dict.fromkeys(keys, dtype)
    for part in config.values():
        if isinstance(part, dict):
            part |= {key: dtype for key in DTYPE_KEYS if key in part}
    if not keys:
        config["dtype"] = dtype


class Unmapped(Exception):  # noqa: N818 - a state of the base's files, not an error
    """The base's files have no tensors of the trained weights' names; only the library can map them."""
