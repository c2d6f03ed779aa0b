"""The control plane of the mesh: which nodes there are, and who talks to whom."""
