"""Carries a plan out and watches it; imports no torch."""
