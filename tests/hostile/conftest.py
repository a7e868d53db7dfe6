"""Fixtures of the parts that are attacked."""

from plugin_world import finetune, front, job, printed
from trainer_world import job_config, model_folder, rows_file, tokenizer_json, world
from training_world import make_bench, tiny_model

__all__ = [
    "finetune",
    "front",
    "job",
    "job_config",
    "make_bench",
    "model_folder",
    "printed",
    "rows_file",
    "tiny_model",
    "tokenizer_json",
    "world",
]
