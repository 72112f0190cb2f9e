"""A map beside what is true, counted."""
