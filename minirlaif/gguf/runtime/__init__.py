"""Running GGUF files through llama.cpp, without torch."""
