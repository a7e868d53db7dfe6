"""The rules of the recommendations: each detects one fault of a run, by the figures of its record."""
