"""A job's manifest as input, and as output with every default resolved."""
