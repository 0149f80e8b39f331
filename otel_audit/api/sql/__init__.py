"""SQL statements as far as rules of the policy need them: what they do, and their text without literals."""
