"""Merge an adapter into its base, and the gate that proves the merged model."""
