"""Progress, metrics and trackers of a run."""
