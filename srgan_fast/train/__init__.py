"""Training: data -> step -> trainer -> checkpoint."""
