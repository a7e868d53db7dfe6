"""The fixtures of `plugin_world`: a fake API server, a job, and the plugin, whose commands use most of the client."""

from plugin_world import finetune, front, job, printed

__all__ = ["finetune", "front", "job", "printed"]
