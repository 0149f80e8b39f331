"""Health that never blocks: checks in the background, answers from memory.

Promises: reading a state does no I/O and waits for nobody; a probe that hangs,
blocks, swallows its cancellation, raises or returns nonsense delays and breaks
nothing but its own component; a result that is too old counts as unknown.

`probe` says what a probe is and what its answer means, `component` when a
component changes its state, `overview` what that makes of the whole, `runner`
how probes run, `checker` when; `announcer` writes changes into the trail,
`gauges` shows them on OpenTelemetry's meters. How states are served is left to
`otel_audit.web.health`.
"""
