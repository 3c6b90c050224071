"""Trains a run with one part left out or changed, arm by arm, and tests the claims of the paper on the results."""
