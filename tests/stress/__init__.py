"""A program that does to nodes whatever a program can, and a model that says what came of it."""
