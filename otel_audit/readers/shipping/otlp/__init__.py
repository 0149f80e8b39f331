"""OTLP for logs: how records are written, how they are sent, and what the far end said."""
