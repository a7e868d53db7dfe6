"""Claim of a prefix, upload with a manifest, and lineage."""
