"""The training loop: callbacks, checkpoints, and what an interrupted run leaves."""
