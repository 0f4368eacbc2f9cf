"""From a case's files to arrays on the network's grid, and what is needed to go back."""
