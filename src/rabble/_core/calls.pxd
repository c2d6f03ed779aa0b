# No other module of the core uses it: its classes and what they have stand in the .pyx.
