"""Peak GPU memory: estimates and measurements."""
