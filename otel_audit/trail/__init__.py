"""Where bytes are kept, and how that is proved. Knows nothing of events."""
