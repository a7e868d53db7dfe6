"""Fixtures of the parts that are attacked."""

from plugin_world import finetune, front, job, printed
from training_world import make_bench, tiny_model

__all__ = ["finetune", "front", "job", "make_bench", "printed", "tiny_model"]
