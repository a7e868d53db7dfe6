"""Read files of rows: JSON, CSV, Parquet and Arrow."""
