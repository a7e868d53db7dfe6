"""Decisions: pure functions of observed objects and the clock."""
