"""Predicts memory and speed of a layout, and how sure that is."""
