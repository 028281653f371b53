"""Work in processes of its own: a child that serves an object, and one that its parent watches."""
