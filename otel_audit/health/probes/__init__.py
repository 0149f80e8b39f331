"""Probes for what services depend on, one file a kind.

Each function returns a probe. It takes the client, engine or pool that the
application has anyway, so that what is checked is what is used, and imports
nothing until it is called: what a probe needs is there when its client is.
"""
