"""Whether Loki has what the trail has."""
