"""Prepare, read and check problems in verl's parquet columns, and slice the labels."""
