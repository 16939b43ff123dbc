"""Products of rows with wide parameters: tiles in registers, rows widened as they are read."""
