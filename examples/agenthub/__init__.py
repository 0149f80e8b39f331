"""AgentHub: a small hub for MCP servers in which everything that matters is audited.

``python -m examples.agenthub`` starts it; ``docs/tutorial.md`` walks through it.
"""
