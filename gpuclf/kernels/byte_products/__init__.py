"""Bytes multiplied as bytes, on processors with a matrix unit (AMX) or dot products (VNNI)."""
