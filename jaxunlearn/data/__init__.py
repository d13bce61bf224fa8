"""Text in, fixed-shape token tables and index schedules out."""
