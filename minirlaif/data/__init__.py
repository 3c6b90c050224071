"""Data files in."""
