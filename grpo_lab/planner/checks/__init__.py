"""Refusals of what cannot work, with the reason and the way out, before anything starts."""
