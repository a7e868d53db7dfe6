"""Several processes and pods: layout, rendezvous, sharding, and the link between pods."""
