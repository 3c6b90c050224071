"""The chat app: pages over an engine (talk.py) and over what a run has written. Torch is loaded by the HF engine alone."""
