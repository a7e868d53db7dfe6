"""Format numbers, times and tables for a terminal."""
