"""OCI registries: what is pushed to them, and how."""
