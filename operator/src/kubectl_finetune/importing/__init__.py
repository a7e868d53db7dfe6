"""Convert training files of other projects to FineTuneJobs: one table for each format, and one engine."""
