"""What runs in a pod: preflight, the training process, the launcher of several, and how each ends."""
