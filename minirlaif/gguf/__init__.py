"""The model as GGUF files for llama.cpp: made by `export/`, run by `runtime/`."""
