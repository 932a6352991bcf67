"""Compute what the report tells of each row: its flow, gains, models, and problems gained and lost."""
