"""Preflight and training from start to end, one module for each stage."""
