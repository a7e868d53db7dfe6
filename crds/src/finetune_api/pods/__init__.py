"""Pods of a job: resources, placement, image and environment."""
