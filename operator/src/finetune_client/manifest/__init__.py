"""Read and check a manifest on this machine."""
