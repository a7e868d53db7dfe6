"""Observed objects and API errors as typed values."""
