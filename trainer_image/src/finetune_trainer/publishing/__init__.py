"""The claim of a prefix, the upload with its manifest, and the lineage."""
