"""Releases of a published result: its adapter gets the name under which a server answers, or a pointer names it."""
