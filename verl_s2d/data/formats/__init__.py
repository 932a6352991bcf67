"""Read data files of any format and published layout in verl's columns."""
