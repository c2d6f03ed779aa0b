"""What transports receive: read, split into frames, sorted by lanes, and answered or kept."""
