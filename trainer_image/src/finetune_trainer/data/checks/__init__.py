"""Check rows, count and split them, and write what was found."""
