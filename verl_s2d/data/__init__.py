"""Problems in verl's parquet columns: reading, checking, slicing the labels."""
