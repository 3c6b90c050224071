"""The chat app: pages over a chat engine and over the files of runs. Only the engine of a training run loads torch."""
