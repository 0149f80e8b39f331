"""What a record is: the event, its odd values, its secrets, its bytes. Knows no storage."""
