"""Measuring: speed beside quality, as records that can be checked."""
