"""Commands: from flags to runs, reports and profiles."""
