"""The evidence: claims of the papers, the rules for verdicts, and the statistics of runs that decide them."""
