"""Problems in verl's parquet columns: published sets prepared, read, checked, the labels sliced."""
