"""The backbone and everything that runs on it: prompts, sampling, scoring, adapters, offload, feature cache."""
