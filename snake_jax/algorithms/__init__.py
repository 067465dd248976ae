"""Methods: who trains which layers when, what travels, and how results are merged."""
