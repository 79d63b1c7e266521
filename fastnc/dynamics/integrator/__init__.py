"""The implicit integrator of gradient flow: its Newton systems, its state, its stepper."""
