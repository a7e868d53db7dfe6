"""Estimate of the memory that a training takes, from sizes alone; without torch."""
