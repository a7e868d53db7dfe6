"""The operator: turns FineTuneJobs into a preflight Job and trainer Jobs, and their ends into status."""
