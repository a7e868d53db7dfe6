"""`kubectl finetune`: a command line for FineTuneJobs. It uses the API types and a client, nothing of the operator."""
