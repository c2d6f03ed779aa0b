"""What stands above the core in Python: names and groups."""
