"""A program that does to nodes whatever a Python program can do, and a model that says what came of it."""
