"""The model below an adapter."""

from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel


def find_base(model: PreTrainedModel | PeftModel) -> Any:
    """Return the model that PEFT wraps; one without an adapter is its own base."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
