"""For every test: nothing is judged by how long it takes on a machine that may have other work."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
