"""The tensors in a model's folder, read one at a time, because a model can be larger than the memory."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open

from finetune_trainer.models.files.base_model import INDEX, WEIGHTS, read_config
from finetune_trainer.models.memory.shape import ModelShape, read_shape

FLOATING = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""The number formats that a merge can change, with the bytes of a value."""
_BYTES = FLOATING | {"F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor's entry in the file's header; `dtype` is a safetensors name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_floating(self) -> bool:
        """Return whether it holds weights, not indices or packed bits."""
        return self.dtype in FLOATING

    def size(self, width: int | None = None) -> int:
        """Return the bytes of the tensor, with another width of its weights if one is given."""
        own = _BYTES.get(self.dtype, 8)
        return prod(self.shape) * (width if width and self.is_floating else own)


class TensorFiles:
    """The open files of a model; a context manager, because each file stays mapped."""

    def __init__(self, *files: Path) -> None:
        self._stack = ExitStack()
        self._files = files
        self._handles: dict[str, Any] = {}

    @classmethod
    def of_folder(cls, directory: Path) -> Self:
        """Open the files of a model that transformers reads: the only one, else those that its index names."""
        index = directory / INDEX
        if (directory / WEIGHTS).is_file() or not index.is_file():
            return cls(directory / WEIGHTS)
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return cls(*(directory / name for name in sorted(names)))

    def __enter__(self) -> Self:
        for file in self._files:
            handle = self._stack.enter_context(safe_open(file, "pt"))
            self._handles |= dict.fromkeys(handle.keys(), handle)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._handles.clear()
        self._stack.close()

    @cached_property
    def headers(self) -> Mapping[str, Header]:
        """Every tensor's header by name."""
        found = {}
        for name, handle in self._handles.items():
            part = handle.get_slice(name)
            found[name] = Header(tuple(part.get_shape()), part.get_dtype())
        return found

    @property
    def largest_file(self) -> int:
        """The bytes of the largest file."""
        return max(file.stat().st_size for file in self._files)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        tensor: torch.Tensor = self._handles[name].get_tensor(name)
        return tensor


def total_bytes(directory: Path, width: int | None = None) -> int:
    """Return the bytes of a model's tensors, with another width of the weights if one is given."""
    with TensorFiles.of_folder(directory) as files:
        return sum(header.size(width) for header in files.headers.values())


def read_local_shape(directory: Path) -> ModelShape | None:
    """Return the sizes of the model in a folder; None if its configuration does not name them in a usual way."""
    with TensorFiles.of_folder(directory) as files:
        return read_shape(read_config(directory), {name: header.shape for name, header in files.headers.items()})
