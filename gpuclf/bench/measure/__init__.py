"""What is measured and how: cases, implementations, the one timer, the record."""
