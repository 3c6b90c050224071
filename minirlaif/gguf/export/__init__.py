"""Making GGUF files and proving them equal."""
