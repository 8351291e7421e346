"""A model as a file that runs without Segue, checked against the model it was made from."""
