"""Live video: sources, sinks and the loop between them."""
