"""S3, hubs and local folders behind one protocol, and registries for the result."""
