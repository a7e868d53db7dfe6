"""The fixtures of `trainer_world` for the commands that run as processes."""

from trainer_world import job_config, model_folder, rows_file, tokenizer_json, world

__all__ = ["job_config", "model_folder", "rows_file", "tokenizer_json", "world"]
