"""Runnable examples: whole applications with an audit trail, each driven by tests."""
