"""What `doctor` looks at, one file a subject.

Promises: nothing is written, locked or created; a check that cannot be made
says so and keeps no other from being made.
"""
