"""The fixtures of `plugin_world` for every test of the plugin."""

from plugin_world import finetune, front, job, printed

__all__ = ["finetune", "front", "job", "printed"]
