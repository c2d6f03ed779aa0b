"""What arrives on channels: read, cut into frames, sorted by lanes, and answered or kept."""
