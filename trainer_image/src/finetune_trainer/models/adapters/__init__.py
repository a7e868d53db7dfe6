"""Adapters as files and as modules: how they start, what a continued one must be, how they are saved and checked."""
