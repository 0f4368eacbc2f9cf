"""The report of a classification study: tables, figures and a page."""
