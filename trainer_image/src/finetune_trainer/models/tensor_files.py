"""The tensors in a model's folder, read one at a time: a model may be larger than the memory."""

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

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
FLOATING = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""The number formats that a merge may change, with the bytes of a value."""
_BYTES = FLOATING | {"F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of a tensor before it is read; the dtype is safetensors' word for it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_floating(self) -> bool:
        """Whether it holds weights, not indices or packed bits."""
        return self.dtype in FLOATING

    def size(self, width: int | None = None) -> int:
        """Bytes, in another width of the values if one is given."""
        own = _BYTES.get(self.dtype, 8)
        return prod(self.shape) * (width if width and self.is_floating else own)


class TensorFiles:
    """A model's folder, opened; a context manager, for each file stays mapped until the end."""

    def __init__(self, *files: Path) -> None:
        self._stack = ExitStack()
        self._files = files
        self._handles: dict[str, Any] = {}

    @classmethod
    def of_folder(cls, directory: Path) -> Self:
        """The files that a model's index names, or its only one."""
        index = directory / INDEX
        if not index.is_file():
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
        """Every tensor by name."""
        found = {}
        for name, handle in self._handles.items():
            part = handle.get_slice(name)
            found[name] = Header(tuple(part.get_shape()), part.get_dtype())
        return found

    @property
    def largest_file(self) -> int:
        """Bytes of the largest file."""
        return max(file.stat().st_size for file in self._files)

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        tensor: torch.Tensor = self._handles[name].get_tensor(name)
        return tensor


def total_bytes(directory: Path, width: int | None = None) -> int:
    """Bytes of a model's weights, in another width of the values if one is given."""
    with TensorFiles.of_folder(directory) as files:
        return sum(header.size(width) for header in files.headers.values())
