"""The entry points of the pods: preflight, the training process, the launcher of several, and their exit."""
