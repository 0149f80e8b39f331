"""The web side: ASGI middleware that gives requests their context and their commit barrier.

Import from `otel_audit.web.fastapi` (one line for FastAPI and Starlette) or
from `otel_audit.web.middleware` (any ASGI application).
"""
