"""Comparisons of held-out figures with their intervals, the same in the trainer and in the client."""
