"""Passes over memory that NumPy makes one operation at a time."""
