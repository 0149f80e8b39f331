"""What follows the trail: readers with a cursor each, and the agent that runs them.

No reader is on the way of a record to its receipt.
"""
