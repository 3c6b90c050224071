"""What reaches Gradio: which requests, of which size, how many of each client."""
