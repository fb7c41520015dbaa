"""Neural-backed decision trees (thesis, chapter 5; arXiv:2004.00221): hierarchies, rules, losses."""
