"""The training loop: methods, callbacks, checkpoints, and records of interrupted runs."""
