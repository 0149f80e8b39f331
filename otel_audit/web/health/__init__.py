"""The routes of health, and the port of its own."""
