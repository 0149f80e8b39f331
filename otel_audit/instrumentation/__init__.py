"""Ways in that need no change of the application.

`launch` and `distro` are what ``opentelemetry-instrument`` calls; the other
modules each instrument one library, or give it a handler or a processor.
"""
