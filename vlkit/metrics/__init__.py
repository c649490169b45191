"""Metrics as pure functions: arrays to numbers. No model, no device."""
