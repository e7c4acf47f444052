"""Training the ensemble: its members, one epoch as a pure function, the runner, and the engines."""
