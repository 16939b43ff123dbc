"""What can compute here (backends, cupy, cpu, machine), and how samples get there (uploads)."""
