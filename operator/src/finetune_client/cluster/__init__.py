"""The connection to the API server, and a FineTuneJob as the commands see it."""
