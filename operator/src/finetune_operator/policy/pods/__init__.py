"""What pods say about a run: why none starts, what an end proves, and which of several ends decides."""
