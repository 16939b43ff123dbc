"""Bytes multiplied as bytes, on processors with a matrix unit (AMX)."""
