"""Video files in and out: what is read, what is written, and what is copied as it is."""
