"""The data plane: compiled, and importing nothing from the layers above it."""
