"""The merge of an adapter into its base, and the gate that checks the merged model."""
