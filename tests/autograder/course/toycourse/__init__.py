"""A course of two toy lessons, so that the autograder's tests depend on no real one."""
