"""Loaded models that run; each imports its library only when it is made."""
