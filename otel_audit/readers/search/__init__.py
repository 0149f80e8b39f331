"""Who answers queries: the trail of this host, or Loki."""
