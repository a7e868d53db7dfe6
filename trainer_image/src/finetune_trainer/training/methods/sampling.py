"""Sampling as many answers at once as the GPU's memory holds."""

import gc
import logging
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer.distributed.sharding import is_sharded
from finetune_trainer.errors import is_out_of_memory
from finetune_trainer.models.loading import NON_REENTRANT
from finetune_trainer.training.callbacks import build_divergence_error
from finetune_trainer.training.random_state import RandomState

NO_PROBABILITIES = "probability tensor contains either"
"""What PyTorch's error contains on a CPU; on a GPU it names no cause."""

logger = logging.getLogger(__name__)


class FittingSampler:
    """Sample all answers in one call, as TRL does; once the GPU runs out of memory, from then on half as many at once.

    The micro-batch does not limit them: it has the memory of a backward pass, and each token takes as long for one
    answer as for many. A sharded model samples all at once or fails, because its processes sample token by token
    together.
    """

    def __init__(self) -> None:
        self._most: int | None = None

    def sample(
        self,
        model: PreTrainedModel | PeftModel,
        prompts: Sequence[list[int]],
        answer: Callable[[Sequence[list[int]]], list[list[int]]],
        step: int,
    ) -> list[list[int]]:
        """Return the model's answers in the order of the prompts; `answer` returns those of one call. The last `step`
        is named if the model has diverged in it."""
        while True:
            rows = min(self._most or len(prompts), len(prompts))
            before, is_checkpointed = RandomState.take(), model.is_activation_checkpointing
            try:
                batches = [prompts[start : start + rows] for start in range(0, len(prompts), rows)]
                return [ids for batch in batches for ids in answer(batch)]
            except RuntimeError as error:
                if NO_PROBABILITIES in str(error):
                    raise build_divergence_error(step, "a probability of a sampled token") from error
                if rows == 1 or is_sharded(model) or not is_out_of_memory(error):
                    raise
            self._most = rows // 2
            logger.warning("out of GPU memory with %s answers at once: sampling %s at once", rows, self._most)
            before.put()
            if is_checkpointed:  # TRL switches it off for the time of a call, and not on again after an error
                model.activation_checkpointing_enable(activation_checkpointing_kwargs=dict(NON_REENTRANT))
            gc.collect()  # outside the handler: its traceback keeps the tensors alive
            torch.cuda.empty_cache()
