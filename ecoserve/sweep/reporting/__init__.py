"""The parts of the report: what is said (answer, statements), shown (tables, figures), and how runs become settings."""
