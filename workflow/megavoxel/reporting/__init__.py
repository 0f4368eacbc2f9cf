"""Tables, figures and a page from the stored scores of a study."""
