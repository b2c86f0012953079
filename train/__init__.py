"""Training: generator, data, losses, loop. The modules inside need the train extra."""
