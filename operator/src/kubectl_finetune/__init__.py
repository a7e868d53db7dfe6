"""`kubectl finetune`: FineTuneJobs for people. It knows the API and a client, nothing of the operator."""
