"""Decides before anything starts; pure."""
