"""Benchmarks: files in, answers, grades, tables."""
