"""Build Jobs, ConfigMaps, Services and volumes."""
