"""Detect and convert the formats of rows."""
