"""Training the ensemble: its members, an epoch of one as a pure function, and where the epochs run."""
