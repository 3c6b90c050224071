"""AI feedback: descriptions, verdicts, preferences."""
