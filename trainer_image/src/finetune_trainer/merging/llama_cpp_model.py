"""A GGUF file as llama.cpp loads it: its tokens, log-probabilities and greedy answers. Only a worker imports this."""

import ctypes
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from finetune_trainer.merging.converter import import_llama_cpp

llama_cpp = import_llama_cpp()

BATCH = 256
"""Tokens that are computed at once."""
FILE_TYPES = {
    "FP32": llama_cpp.LLAMA_FTYPE_ALL_F32,
    "BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "FP16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q6_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
    "Q5_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


_ERROR = 4
"""The level of an error in llama.cpp's log."""
_errors: deque[str] = deque(maxlen=8)


class LlamaCppError(Exception):
    """llama.cpp refuses a file; the message ends with the first of its own that is an error."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}: {_errors[0]}"[:400] if _errors else message)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # the library has no types
def _keep_errors(level: int, text: bytes, _: object) -> None:
    if level == _ERROR:
        _errors.append(text.decode("utf-8", "replace").strip())


llama_cpp.llama_log_set(_keep_errors, None)


def quantise(source: Path, file: Path, file_type: str, threads: int) -> None:
    """Write a GGUF file with the weights of another in this type; raises LlamaCppError."""
    _errors.clear()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = threads, FILE_TYPES[file_type]
    if llama_cpp.llama_model_quantize(bytes(source), bytes(file), ctypes.byref(settings)):
        raise LlamaCppError(f"llama.cpp cannot write it as {file_type}")


@contextmanager
def open_model(file: Path, longest: int, threads: int) -> Iterator["LlamaCppModel"]:
    """Load a file on the CPU, for rows of up to `longest` tokens; raises LlamaCppError."""
    _errors.clear()
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(bytes(file), settings)
    if not model:
        raise LlamaCppError("llama.cpp cannot load it")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = longest, BATCH, BATCH
    options.n_threads = options.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, options)
    if not context:
        llama_cpp.llama_model_free(model)
        raise LlamaCppError(f"llama.cpp cannot load it for {longest} tokens")
    batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
    try:
        yield LlamaCppModel(model, context, batch)
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


class LlamaCppModel:
    """A loaded file, which computes one row at a time."""

    def __init__(self, model: Any, context: Any, batch: Any) -> None:
        self._context, self._batch = context, batch
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)
        self._width = llama_cpp.llama_vocab_n_tokens(self._vocabulary)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text with special tokens in it; none is added."""
        data = text.encode()
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), ids, room, False, True)
        if count < 0:
            raise LlamaCppError("llama.cpp cannot tokenise a row")
        return list(ids[:count])

    def log_probs(self, ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Return the log-probabilities after these positions of a row: positions by vocabulary, FP32."""
        self._forget()
        rows = [row for _, row in self._decode(ids, 0, set(positions))]
        return torch.from_numpy(np.stack(rows)).log_softmax(-1)

    def answer(
        self, prompt: Sequence[int], stop_ids: Sequence[int], most: int, on_token: Callable[[], None]
    ) -> list[int]:
        """Return the ids of the greedy answer to a prompt, without the token that ends it."""
        self._forget()
        answer: list[int] = []
        given, at = list(prompt), 0
        while len(answer) < most:
            ((_, row),) = self._decode(given, at, {len(given) - 1})
            on_token()
            at += len(given)
            chosen = int(row.argmax())
            if chosen in stop_ids:
                break
            answer.append(chosen)
            given = [chosen]
        return answer

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _decode(
        self, ids: Sequence[int], start: int, wanted: set[int]
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Compute tokens that begin at place `start` of the row; yield the logits at the wanted ones of `ids`."""
        batch = self._batch
        for first in range(0, len(ids), BATCH):
            part = ids[first : first + BATCH]
            batch.n_tokens = len(part)
            for at, token in enumerate(part):
                batch.token[at], batch.pos[at] = token, start + first + at
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
                batch.logits[at] = first + at in wanted
            if llama_cpp.llama_decode(self._context, batch):
                raise LlamaCppError("llama.cpp cannot compute a row")
            for at in range(len(part)):
                if first + at in wanted:
                    logits = llama_cpp.llama_get_logits_ith(self._context, at)
                    yield first + at, np.ctypeslib.as_array(logits, (self._width,)).copy()
