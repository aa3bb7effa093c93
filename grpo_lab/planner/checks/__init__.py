"""What cannot work, refused with the reason and the way out before anything starts."""
