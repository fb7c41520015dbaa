"""Scripts that regenerate the tables and figures."""
