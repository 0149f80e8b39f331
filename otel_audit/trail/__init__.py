"""Where records are kept, proved and verified; knows bytes only, nothing of events."""
