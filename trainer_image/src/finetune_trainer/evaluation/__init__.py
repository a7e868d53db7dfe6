"""Measurements of a run, as records, and the rules that judge them."""
