"""Prometheus metrics: the operator's own, and each job's, read from its status and removed with the job."""
