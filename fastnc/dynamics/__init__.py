"""Descent, flow and sweeps of the model, and the trajectories they return."""
