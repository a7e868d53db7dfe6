"""FineTuneReleases: an optional part of the operator, which is imported only if the settings ask for it."""
