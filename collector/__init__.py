"""The servers beside otel-audit: their configurations, and programs that build and run them."""
