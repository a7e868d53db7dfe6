"""The trainer: from rows to a published adapter."""
