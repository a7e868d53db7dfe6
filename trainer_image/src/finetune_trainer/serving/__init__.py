"""The servers that answer with a result."""
