"""Manifests as people write them: YAML with the place of every field, names of other projects, and fixed fields."""
