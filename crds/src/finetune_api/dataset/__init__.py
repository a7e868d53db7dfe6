"""What preflight reports about rows, for all programs."""
