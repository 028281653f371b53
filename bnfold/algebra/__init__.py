"""What folds, and how: the neutral graph and the algebra of affines. Imports no framework."""
