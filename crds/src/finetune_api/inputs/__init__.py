"""What a job reads: model, rows, storage and hub, with the chat template."""
