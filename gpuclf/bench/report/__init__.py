"""What a record is shown as: tables, the page, a comparison of two."""
