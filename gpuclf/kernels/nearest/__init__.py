"""Distances and the nearest neighbours."""
