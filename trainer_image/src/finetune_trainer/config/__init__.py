"""A job's manifest as input, and as output with resolved defaults."""
