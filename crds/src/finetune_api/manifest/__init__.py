"""Manifests as people write them: YAML with the place of every field, and the names that other projects use."""
