"""The tiny world: clips with known truth, and the base model trained on them."""
