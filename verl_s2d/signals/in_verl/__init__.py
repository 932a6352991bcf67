"""Run signals inside verl: as its advantage estimator, or as the loss function of its engines."""
