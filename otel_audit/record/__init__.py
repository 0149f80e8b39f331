"""What a record is: events, their classes, redaction, canonical bytes, OpenTelemetry names."""
