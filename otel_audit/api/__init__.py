"""The caller's side: providers, loggers, context, policy, spans."""
