"""Clips in: which frames, decoded by which process, at which times."""
