"""Base models and adapters: files, loading, memory, resolved settings."""
