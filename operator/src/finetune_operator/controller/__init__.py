"""The kopf handlers, the work queue and the reconciler."""
