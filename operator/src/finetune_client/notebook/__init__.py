"""What a notebook shows of a job: a bar, figures and curves."""
