"""Run folders: stages, manifests, resumable state, files that survive a kill."""
