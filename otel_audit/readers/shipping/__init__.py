"""Sending the trail to other places, and what became of it there."""
